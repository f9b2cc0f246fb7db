"""Which domains the tasks of a step are of: a task source whose mixture changes with the steps.

    algorithm.curriculum: {from_0: {gcd: 1}, from_100: {gcd: 1, proofs: 3}}     # from a step on: shares

The stream stays a function of the index alone, so that a resumed run meets the same tasks: task i belongs to
step i // (tasks of a step), which is exact where no attempt is lost and near it where some are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlframe.errors import UserError
from rlframe.interfaces import AnyEnv, DrawsByDomain, TaskSource
from rlframe.types import Demonstration, Task

KEY = "algorithm.curriculum"
PREFIX = "from_"
"""Of a step: names in a configuration are text."""
WINDOW = 256
"""Tasks of the source that are looked through for one of the wanted domain."""
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Shares by domain, each from its step on; ascending, the first at step 0."""

    steps: tuple[int, ...]
    shares: tuple[Mapping[str, float], ...]

    def domain(self, index: int, *, tasks_per_step: int) -> str:
        """Of task `index`: spread evenly over a step by multiples of the golden ratio (Knuth, TAOCP 6.4)."""
        shares = self.shares[bisect_right(self.steps, index // tasks_per_step) - 1]
        place = (index + 1) * _GOLDEN % 1.0 * sum(shares.values())
        for name, share in shares.items():
            place -= share
            if place < 0:
                return name
        return next(reversed(list(shares)))

    @property
    def domains(self) -> set[str]:
        return {name for shares in self.shares for name in shares}


def parse_curriculum(given: Mapping[Any, Any]) -> Curriculum | None:
    """None where there is none. UserError for steps or shares that are none."""
    if not given:
        return None
    phases = {}
    for step, shares in given.items():
        number = str(step).removeprefix(PREFIX)
        if not number.isdigit():
            raise UserError(f"{KEY}.{step}: the keys are steps, such as {PREFIX}0 and {PREFIX}100")
        if not isinstance(shares, Mapping) or not shares:
            raise UserError(
                f"{KEY}.{step}={shares!r}: must be shares by domain, {{gcd: 1, aiw: 3}}"
            )
        for domain, share in shares.items():
            plain = isinstance(share, int | float) and not isinstance(share, bool)
            if not plain or share <= 0:
                raise UserError(f"{KEY}.{step}.{domain}={share!r}: must be a number above 0")
        phases[int(number)] = {str(d): float(s) for d, s in shares.items()}
    if 0 not in phases:
        raise UserError(f"{KEY} begins at step {min(phases)}: say what is from step 0 on, too")
    steps = tuple(sorted(phases))
    return Curriculum(steps, tuple(phases[step] for step in steps))


class CurriculumSource:
    """`source` in another order; satisfies `TaskSource`."""

    def __init__(self, source: TaskSource, curriculum: Curriculum, *, tasks_per_step: int) -> None:
        """UserError for a domain that the held-out tasks do not have."""
        self._source, self._curriculum = source, curriculum
        self._tasks_per_step = tasks_per_step
        known = {task.domain for task in source.held_out_tasks()}
        unknown = sorted(curriculum.domains - known)
        if unknown:
            raise UserError(
                f"{KEY}: the environment has no domain '{unknown[0]}'; it has {', '.join(sorted(known))}"
            )

    def train_task(self, index: int) -> Task:
        """By the source itself where it can, else the first of this index's own window that has the domain."""
        domain = self._curriculum.domain(index, tasks_per_step=self._tasks_per_step)
        if isinstance(self._source, DrawsByDomain):
            return self._source.train_task_of(domain, index)
        for place in range(index * WINDOW, (index + 1) * WINDOW):
            task = self._source.train_task(place)
            if task.domain == domain:
                return task
        raise UserError(
            f"{KEY}: none of {WINDOW} tasks in a row is of '{domain}': raise its weight in the environment"
        )

    def held_out_tasks(self) -> Sequence[Task]:
        return self._source.held_out_tasks()

    def make(self, task: Task) -> AnyEnv:
        return self._source.make(task)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        return self._source.demonstrations(count)
