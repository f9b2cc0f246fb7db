"""The attempts of an evaluation: `repeats` at each task, each durable once it has ended.

An attempt's id says which it is, so that the same command, started again, makes what is missing and nothing
else. One that our side lost is made again under an id of its own: nothing in a store is ever replaced.

    eval/puzzles/17/2        the third attempt at task `puzzles/17`
    eval/puzzles/17/2+1      made again, because that one was lost
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlframe.interfaces import RolloutRequest
from rlframe.types import Status, Task

PREFIX = "eval/"
LOST = (Status.INFRA_ERROR, Status.ABORTED)
"""Statuses that say nothing about the policy: the attempt is made again."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the attempts that a task is to have."""

    task: Task
    repeat: int

    @property
    def first_id(self) -> str:
        return f"{PREFIX}{self.task.id}/{self.repeat}"

    def id_of(self, number: int) -> str:
        """0: the first; n: made again for the n-th time."""
        return self.first_id if number == 0 else f"{self.first_id}+{number}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is there already, and what is to be made."""

    standing: dict[str, Slot]
    """The slots that have an attempt which stands, by its id."""
    missing: list[RolloutRequest]
    lost: dict[str, Slot]
    """Of those missing that were tried: the slot, by the id of its last try."""

    @property
    def slots(self) -> int:
        return len(self.standing) + len(self.missing)


def slots_of(tasks: Sequence[Task], repeats: int) -> list[Slot]:
    """First every task once, then every task again: a look at half of it is a look at all tasks."""
    return [Slot(task, repeat) for repeat in range(repeats) for task in tasks]


def plan(slots: Sequence[Slot], stored: Iterable[tuple[str, Status]]) -> Plan:
    """`stored`: id and status of what has ended, in any order; ids of other slots don't matter."""
    latest: dict[str, tuple[int, Status]] = {}
    for attempt_id, status in stored:
        first, number = _split(attempt_id)
        if number >= latest.get(first, (-1, status))[0]:
            latest[first] = (number, status)
    made = Plan({}, [], {})
    for slot in slots:
        number, status = latest.get(slot.first_id, (-1, Status.ABORTED))
        if status not in LOST:
            made.standing[slot.id_of(number)] = slot
            continue
        made.missing.append(RolloutRequest(id=slot.id_of(number + 1), task=slot.task))
        if number >= 0:
            made.lost[slot.id_of(number)] = slot
    return made


def _split(attempt_id: str) -> tuple[str, int]:
    """The slot's first id, and how often it had been made before. A task's own id may have a `+`."""
    head, plus, tail = attempt_id.rpartition("+")
    if plus and tail.isdigit() and head.rpartition("/")[2].isdigit():
        return head, int(tail)
    return attempt_id, 0
