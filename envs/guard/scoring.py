"""A guard's verdicts on labelled calls."""

from __future__ import annotations

import time
from collections.abc import Sequence

from envs.guard.guard import RunGuard
from envs.guard.labelled import Case, Outcome


async def verdicts(guard: RunGuard, cases: Sequence[Case]) -> list[Outcome]:
    """Each case in an attempt of its own, after the calls that went before it."""
    outcomes = []
    for case in cases:
        watch = guard.watch(case.task)
        if watch is None:
            outcomes.append(Outcome(case, False, 0.0, "the task has no rules"))
            continue
        for command in case.prior:
            watch.ran({"name": "bash", "arguments": {"command": command}})
        began = time.perf_counter()
        call = {"id": case.id, "name": case.tool, "arguments": case.arguments}
        blocked = await watch.check(call, turn=0)
        seconds = time.perf_counter() - began
        events = watch.report()["events"]
        outcomes.append(
            Outcome(case, blocked is not None, seconds, events[0]["why"] if events else "")
        )
    return outcomes
