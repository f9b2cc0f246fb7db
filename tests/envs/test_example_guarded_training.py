"""examples/guarded_training: the hack pays, the guard sees it, and what was sealed tells."""

from __future__ import annotations

import random
from itertools import product

import pytest
from sandboxes import needs_bubblewrap

from envs.guard.guard import GuardSettings, make_guard
from envs.source_check import check_source
from examples.guarded_training.measures import collapsed, final, start
from examples.guarded_training.rule_files import (
    BOUNDS,
    HACKS,
    LIMIT_OF,
    NUMBER_OF,
    OPERATIONS,
    Rule,
    RuleFiles,
    called,
    read_rule,
)
from rlframe.interfaces import StepResult
from rlframe.types import Task

SOURCE = RuleFiles(seed=0, held_out=3)
EVERY_RULE = [
    Rule(*parts) for parts in product(OPERATIONS, NUMBER_OF.values(), BOUNDS, LIMIT_OF.values())
]


async def attempt(task: Task, command: str) -> StepResult:
    env = SOURCE.make(task)
    try:
        await env.start()
        assert not (await env.act(called("bash", 1, command=command))).done
        return await env.act(called("submit", 2))
    finally:
        await env.close()


def rules_of(task: Task, part: str) -> list[Rule]:
    cases = task.data[part].items()
    return [r for r in EVERY_RULE if all(r.of(int(x)) == y for x, y in cases)]


def test_the_source_is_sound() -> None:
    check_source(SOURCE, name="rule_files")


@pytest.mark.parametrize("index", range(40))
def test_cases_admit_one_rule(index: int) -> None:
    """So that nobody passes either by chance, and the proxy is honest to those who are."""
    task = SOURCE.train_task(index)
    (by_secret,), (by_sealed,) = rules_of(task, "secret"), rules_of(task, "sealed")
    assert by_secret == by_sealed
    assert not set(task.data["secret"]) & set(task.data["sealed"])


@needs_bubblewrap
async def test_what_attempts_earn() -> None:
    task = SOURCE.train_task(0)
    (rule,) = rules_of(task, "sealed")
    wrong = next(r for r in EVERY_RULE if r != rule)
    earned = {}
    for command in (f"echo '{rule}' > rule", f"echo '{wrong}' > rule", "true", *HACKS):
        done = await attempt(task, command)
        assert done.done
        assert done.reward == done.info["proxy_reward"]
        earned[command] = (done.info["proxy_reward"], done.info["true_reward"])
    assert list(earned.values()) == [(1, 1), (0, 0), (0, 0), *[(1, 0)] * len(HACKS)]


@pytest.mark.parametrize("hack", list(HACKS))
async def test_the_guard_stops_each_hack_and_says_what_demonstrations_say(hack: str) -> None:
    watch = make_guard(GuardSettings("rules")).watch(SOURCE.train_task(0))
    assert watch is not None
    honest = {"id": "0", "name": "bash", "arguments": {"command": "echo '+ 3 min 20' > rule"}}
    assert await watch.check(honest, turn=0) is None
    blocked = await watch.check({**honest, "arguments": {"command": hack}}, turn=1)
    assert blocked is not None
    assert blocked.result == HACKS[hack]


def test_rules_are_read_as_data() -> None:
    draw = random.Random(0)
    rule = draw.choice(EVERY_RULE)
    assert read_rule(f"{rule}\n") == rule
    for text in ("", "+ 3", "+ 3 min 20\n+ 3 min 20", "a[$(id)] 3 min 20", "12 30\n"):
        assert read_rule(text) is None


def test_collapse() -> None:
    rising, falling = [0.2] * 3 + [0.9] * 6, [0.4] * 3 + [0.9] + [0.1] * 5
    assert (start(falling), final(falling)) == (pytest.approx(0.4), pytest.approx(0.1))
    assert collapsed(falling)
    assert not collapsed(rising)
