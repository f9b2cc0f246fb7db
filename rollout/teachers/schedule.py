"""Which engine scores which teacher's work, and in which order: a pure function.

Scheduling on parallel machines with setup times, where work may be split: each teacher's pending work is
so many seconds, an engine that has another teacher loaded needs a swap first, and the makespan (when
the last engine is done) is to be small. That is NP-hard (it contains bin packing), so:

1. each teacher goes whole to the engine where it would be done first, the largest first (LPT);
2. teachers are moved and exchanged between engines while that lowers the makespan, or at the same
   makespan the number of swaps;
3. the most loaded engine hands part of a teacher to the least loaded one while that pays for the swap.

After 3 no two engines are further apart than a swap. Tests compare with brute force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

EPSILON = 1e-9
ROUNDS = 64
"""Of improvements; small cases need a handful."""

SwapSeconds = Callable[[int, str | None, str], float]
"""(engine, teacher that it has, teacher that it is to have): seconds; infinite where it never can."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine is up to when the plan is made."""

    loaded: str | None
    free_s: float = 0.0
    """From now, until it is done with what it was given."""
    turn_s: float = 0.0
    """How long it has had this teacher."""


@dataclass(slots=True)
class Plan:
    """`turns[e]`: (teacher, seconds of its work) in the order in which engine e takes them."""

    turns: list[list[tuple[str, float]]]
    ends_s: list[float]
    """When each engine is done."""

    @property
    def makespan_s(self) -> float:
        return max(self.ends_s, default=0.0)


def plan(work_s: Mapping[str, float], engines: Sequence[EngineState], swap_s: SwapSeconds) -> Plan:
    """`work_s`: seconds of pending work by teacher. Teachers that no engine can load are left out."""
    draft = _Draft(work_s, engines, swap_s)
    for teacher in sorted(work_s, key=lambda name: (-work_s[name], name)):
        if work_s[teacher] > 0:
            draft.place(teacher)
    for _ in range(ROUNDS):
        if not draft.improve():
            break
    for _ in range(ROUNDS):
        if not draft.split():
            break
    return draft.finished()


class _Change(NamedTuple):
    """`teacher` goes from engine `one` to `other`, and `back`, if it is one, the other way."""

    one: int
    other: int
    teacher: str
    back: str | None
    one_s: float
    """By how much the end of `one` moves."""
    other_s: float


@dataclass(slots=True)
class _Draft:
    work_s: Mapping[str, float]
    engines: Sequence[EngineState]
    swap_s: SwapSeconds
    parts: list[dict[str, float]] = field(init=False)
    """By engine: seconds of each teacher's work."""

    def __post_init__(self) -> None:
        self.parts = [{} for _ in self.engines]

    def cost(self, engine: int, teacher: str) -> float:
        """The swap before `teacher`'s work on `engine`."""
        loaded = self.engines[engine].loaded
        return 0.0 if loaded == teacher else self.swap_s(engine, loaded, teacher)

    def end(self, engine: int, parts: Mapping[str, float] | None = None) -> float:
        parts = self.parts[engine] if parts is None else parts
        return self.engines[engine].free_s + sum(
            seconds + self.cost(engine, teacher) for teacher, seconds in parts.items()
        )

    def place(self, teacher: str) -> None:
        seconds = self.work_s[teacher]
        costs = {e: self.cost(e, teacher) for e in range(len(self.engines))}
        able = [e for e, cost in costs.items() if cost != float("inf")]
        if able:
            best = min(able, key=lambda e: (self.end(e) + costs[e] + seconds, costs[e], e))
            self.parts[best][teacher] = seconds

    def improve(self) -> bool:
        """The best move or exchange of whole teachers, if any helps."""
        ends = [self.end(e) for e in range(len(self.parts))]
        latest = sorted(ends, reverse=True)[:3]  # the third is there whichever two change
        best: tuple[float, float, _Change] | None = None
        for change in self._changes():
            one, other = change.one, change.other
            new = (ends[one] + change.one_s, ends[other] + change.other_s)
            rest = list(latest)
            for old in (ends[one], ends[other]):
                if old in rest:
                    rest.remove(old)
            makespan = max(*new, *rest[:1]) - latest[0]
            # Of the two engines' sum, what falls is swaps: work is only handed around.
            swaps = change.one_s + change.other_s
            helps = makespan < -EPSILON or (makespan < EPSILON and swaps < -EPSILON)
            if helps and (best is None or (makespan, swaps) < best[:2]):
                best = (makespan, swaps, change)
        if best is None:
            return False
        change = best[2]
        mine, theirs = self.parts[change.one], self.parts[change.other]
        theirs[change.teacher] = mine.pop(change.teacher)
        if change.back is not None:
            mine[change.back] = theirs.pop(change.back)
        return True

    def _changes(self) -> Iterator[_Change]:
        """A teacher moved from one engine to another, or two exchanged."""
        costs = {
            (e, t): self.cost(e, t) for e in range(len(self.parts)) for p in self.parts for t in p
        }
        for (one, mine), (other, theirs) in permutations(enumerate(self.parts), 2):
            for teacher, seconds in mine.items():
                if costs[other, teacher] == float("inf"):
                    continue
                away_s = -seconds - costs[one, teacher]
                there_s = seconds + costs[other, teacher]
                yield _Change(one, other, teacher, None, away_s, there_s)
                for back, back_s in theirs.items() if one < other else ():
                    if costs[one, back] != float("inf"):
                        here_s = back_s + costs[one, back]
                        gone_s = -back_s - costs[other, back]
                        yield _Change(one, other, teacher, back, away_s + here_s, there_s + gone_s)

    def split(self) -> bool:
        """Part of the latest engine's work to the earliest one that can take it, if that pays."""
        ends = [self.end(e) for e in range(len(self.parts))]
        latest = max(range(len(ends)), key=ends.__getitem__)
        best: tuple[float, int, str, float] | None = None
        for other in range(len(ends)):
            for teacher, seconds in self.parts[latest].items() if other != latest else ():
                held = teacher in self.parts[other]
                cost = 0.0 if held else self.cost(other, teacher)
                if cost == float("inf"):
                    continue
                given = min((ends[latest] - ends[other] - cost) / 2, seconds)
                gain = ends[latest] - max(ends[latest] - given, ends[other] + cost + given)
                if given > EPSILON and gain > EPSILON and (best is None or gain > best[0]):
                    best = (gain, other, teacher, given)
        if best is None:
            return False
        _, other, teacher, given = best
        left = self.parts[latest][teacher] - given
        if left > EPSILON:
            self.parts[latest][teacher] = left
        else:
            del self.parts[latest][teacher]
        self.parts[other][teacher] = self.parts[other].get(teacher, 0.0) + given
        return True

    def finished(self) -> Plan:
        """The loaded teacher first, since that saves its swap; then the largest first."""
        turns = [
            sorted(parts.items(), key=lambda item: (item[0] != engine.loaded, -item[1], item[0]))
            for parts, engine in zip(self.parts, self.engines, strict=True)
        ]
        return Plan(turns, [self.end(e) for e in range(len(self.parts))])
