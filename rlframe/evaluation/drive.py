"""From a plan to attempts that have ended: the loop of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rlframe.evaluation.attempts import Plan
from rlframe.interfaces import RolloutService
from rlframe.types import Trajectory

COLLECT_TIMEOUT_S = 1.0


class Ledger(Protocol):
    """What is needed of the store (`rlframe.store`)."""

    def admit(self, ids: Sequence[str]) -> None: ...
    def put(self, trajectories: Sequence[Trajectory]) -> None: ...


def drive(
    service: RolloutService,
    store: Ledger,
    planned: Plan,
    *,
    window: int,
    progress: Callable[[int], object],
) -> None:
    """Asks for what is missing, `window` attempts at a time, and stores whatever ends."""
    waiting = list(reversed(planned.missing))
    under_way: set[str] = set()
    while waiting or under_way:
        asked = [waiting.pop() for _ in range(min(len(waiting), window - len(under_way)))]
        if asked:
            store.admit([request.id for request in asked])
            under_way |= {request.id for request in asked}
            service.submit(asked)
        ended = [t for t in service.collect(COLLECT_TIMEOUT_S) if t.id in under_way]
        store.put(ended)
        under_way -= {t.id for t in ended}
        progress(len(ended))
