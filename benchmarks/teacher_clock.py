"""The queues and plans on a virtual clock, with engines that take exactly as long as they say."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlframe.teaching import ScoreRequest
from rollout.teachers.queues import Queues
from rollout.teachers.schedule import EngineState


@dataclass(frozen=True)
class Arrival:
    """One trace for one teacher."""

    at_s: float
    teacher: str
    tokens: int


@dataclass
class Simulated:
    ended_s: float = 0.0
    scored: int = 0
    swaps: int = 0
    loaded: list[str | None] = field(default_factory=list)
    """By engine, at the end."""
    busy_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)


def simulate(
    arrivals: Sequence[Arrival],
    *,
    engines: int,
    swap_s: float,
    tokens_per_s: float,
    batch_tokens: int = 16384,
    loaded: Sequence[str | None] = (),
) -> Simulated:
    """Until everything is scored. The decisions are `Queues.next_turn`'s, at every arrival and whenever
    an engine is done; between them, at the times at which a swap begins to pay."""
    queues = Queues(tokens_per_s)
    found = Simulated()
    have: list[str | None] = [*loaded, *[None] * (engines - len(loaded))]
    free_at = [0.0] * engines
    turn_began = [0.0] * engines
    clock: list[tuple[float, int, ScoreRequest | None]] = []
    for number, a in enumerate(arrivals):
        ids = np.broadcast_to(np.int32(0), a.tokens)
        heapq.heappush(clock, (a.at_s, number, ScoreRequest(str(number), a.teacher, ids, 1)))
    ticket = len(arrivals)

    def wake(at_s: float) -> None:
        nonlocal ticket
        heapq.heappush(clock, (at_s, ticket, None))
        ticket += 1

    def costs(engine: int, before: str | None, teacher: str) -> float:
        return swap_s

    while clock:
        now, _, request = heapq.heappop(clock)
        if request is not None:
            queues.add([request], now)
        if clock and clock[0][0] == now:
            continue  # all that happens at one time is seen together
        for engine in range(engines):
            if free_at[engine] > now:
                continue
            states = [
                EngineState(h, max(f - now, 0.0), now - b)
                for h, f, b in zip(have, free_at, turn_began, strict=True)
            ]
            teacher = queues.next_turn(engine, states, costs, now)
            if teacher is None:
                continue
            swapped = have[engine] != teacher
            have[engine] = teacher
            if swapped:
                turn_began[engine] = now + swap_s
            taken = queues.take(teacher, batch_tokens)
            seconds = sum(len(w.request.token_ids) for w in taken) / tokens_per_s
            found.waited_s += [now - w.since_s for w in taken]
            found.swaps += swapped
            found.busy_s += seconds
            found.scored += len(taken)
            free_at[engine] = now + swap_s * swapped + seconds
            found.ended_s = max(found.ended_s, free_at[engine])
            wake(free_at[engine])
        if len(queues) and not clock:
            wake(now + max(swap_s / 4, 1e-3))
    found.loaded = have
    return found
