"""One attempt as an evaluation looks at it: how it ended, what it scored, what it cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlframe.evaluation.attempts import Slot
from rlframe.types import Status, Trajectory


@dataclass(frozen=True, slots=True)
class Measured:
    """Plain numbers; no tokens."""

    id: str
    task_id: str
    suite: str
    domain: str
    """Behind the suite's name."""
    repeat: int
    status: Status
    score: float
    turns: int
    prompt_tokens: int
    """Of all calls together: what an endpoint without a prompt cache would read."""
    sampled_tokens: int
    seconds: float
    """From its beginning to its end, all tries."""
    tries: int
    versions: tuple[int, ...]
    """Of its tokens, sorted."""
    blocked_turns: int
    """By the guard; their tokens count as sampled only with `guard.loss=train` or `penalise`."""
    error: str


def measure(trajectory: Trajectory, slot: Slot) -> Measured:
    """The suite is what stands before the first slash of the task's id (see envs/suites/union.py)."""
    suite, _, _ = slot.task.id.partition("/")
    info = trajectory.info
    versions = {int(v) for t in trajectory.traces for v in np.unique(t.versions[t.loss_mask])}
    return Measured(
        id=trajectory.id,
        task_id=slot.task.id,
        suite=suite,
        domain=slot.task.domain.removeprefix(f"{suite}/"),
        repeat=slot.repeat,
        status=trajectory.status,
        score=trajectory.reward,
        turns=int(info.get("turns", 0)),
        prompt_tokens=prompt_tokens(trajectory),
        sampled_tokens=trajectory.actions,
        seconds=float(info.get("seconds", 0.0)),
        tries=int(info.get("tries", 1)),
        versions=tuple(sorted(versions)),
        blocked_turns=int(info.get("guard", {}).get("blocked_turns", 0)),
        error=str(info.get("error", "")),
    )


def prompt_tokens(trajectory: Trajectory) -> int:
    """Each unbroken run of actions is one call, and all that stands before it was its prompt."""
    total = 0
    for trace in trajectory.traces:
        begins = trace.loss_mask & ~np.concatenate([[False], trace.loss_mask[:-1]])
        total += int(np.flatnonzero(begins).sum())
    return total
