"""Whether an engine gets ahead with its work, by its scheduler's own counters and not by a health port.

SGLang's /health is answered by the HTTP process, or waits for a token up to 20 s; a scheduler that hangs
with requests in it is told by counters that stand still, and by a token that does not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Sign = tuple[int, ...]
"""Counters of an engine that move while it works; empty where it could not be asked."""
ASK_AFTER_SHARE = 0.3
"""Of the time that an engine may stand still: after that it is asked for a token."""
HUNG_SHARE = 0.9
"""The rest is for the time between two looks."""
SHORTEST_WAIT_S = 1.0


class Pulse:
    """When one engine was last seen to move."""

    def __init__(self, hung_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hung_after_s, self._clock = hung_after_s, clock
        self._sign: Sign = ()
        self._moved_s = clock()

    def beat(self) -> None:
        """It moved: a token came, or there is nothing for it to do."""
        self._moved_s = self._clock()

    def feel(self, sign: Sign) -> None:
        if sign and sign != self._sign:
            self._sign = sign
            self.beat()

    @property
    def still_s(self) -> float:
        return self._clock() - self._moved_s

    @property
    def doubtful(self) -> bool:
        return self.still_s >= ASK_AFTER_SHARE * self._hung_after_s

    @property
    def patience_s(self) -> float:
        """How long a token may take from now on."""
        return max(HUNG_SHARE * self._hung_after_s - self.still_s, SHORTEST_WAIT_S)

    @property
    def hung(self) -> bool:
        return self.still_s >= HUNG_SHARE * self._hung_after_s
