"""Which rank of a role is silent: alive for Ray, but stopped or hung.

A dead process is noticed at once by its `watch` call. A stopped one (SIGSTOP, a debugger, a device that
never returns) keeps its connections, and its peers wait for it in a collective until that times out.
So every rank is asked for a sign of life now and then. A rank that computes answers: `ping` has a
thread of its own, and torch lets go of the GIL in its long calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

PING_EVERY_S = 2.0
LAST_CHANCE_S = 1.0


class Heartbeat:
    """Asked while somebody waits for the ranks; silence counts only then, so that a driver that slept
    blames nobody."""

    def __init__(self, ping: Callable[[int], Any], *, ranks: int, silent_after_s: float) -> None:
        """`ping(rank)` sends one and returns its reference. `silent_after_s` 0: never asks."""
        self._ping, self._silent_after_s = ping, silent_after_s
        self._asked: dict[int, Any] = {}
        self._silent_s = [0.0] * ranks
        self._looked_s = time.monotonic()

    @property
    def every_s(self) -> float | None:
        """How often to look; None: never."""
        return PING_EVERY_S if self._silent_after_s else None

    def silent_rank(self) -> int | None:
        """The first rank that has been silent for too long; asks those that have answered again."""
        if not self._silent_after_s:
            return None
        now = time.monotonic()
        watched_s, self._looked_s = min(now - self._looked_s, 2 * PING_EVERY_S), now
        for rank in range(len(self._silent_s)):
            if self._answered(rank, within_s=0.0):
                self._silent_s[rank] = 0.0
                self._asked[rank] = self._ping(rank)
                continue
            self._silent_s[rank] += watched_s
            if self._silent_s[rank] >= self._silent_after_s and not self._answered(
                rank, within_s=LAST_CHANCE_S
            ):
                return rank
        return None

    def _answered(self, rank: int, *, within_s: float) -> bool:
        """True also where it was never asked, and where it is dead: that is `watch`'s to say."""
        asked = self._asked.get(rank)
        if asked is None:
            return True
        ready, _ = ray.wait([asked], timeout=within_s)
        return bool(ready)
