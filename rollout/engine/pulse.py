"""Whether an engine gets ahead with its work, by its scheduler's own counters and not by a health port.

SGLang's /health is answered by the HTTP process, or waits for a token up to 20 s; a scheduler that hangs
with requests in it is told by counters that stand still, and by a token that does not come.

On a CPU one forward pass may take long, where other processes want the cores: an engine whose scheduler uses
processor time is at work on it. On a GPU that says nothing, since who waits for a GPU spins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

ASK_AFTER_SHARE = 0.3
"""Of the time that an engine may stand still: after that it is asked for a token."""
HUNG_SHARE = 0.9
"""The rest is for the time between two looks."""
SHORTEST_WAIT_S = 1.0
WORK_S = 0.05
"""Of processor time between two looks: less is no work."""
LONGEST_PASS = 20.0
"""So many times longer a pass may take on a CPU, whatever processor time it uses."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What an engine shows of itself."""

    counters: tuple[int, ...]
    """Those of its schedulers, which move while it works; empty where it could not be asked."""
    processor_s: float = 0.0
    """Used by its schedulers so far; 0 on a GPU."""


class Pulse:
    """When one engine was last seen to move."""

    def __init__(self, hung_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hung_after_s, self._clock = hung_after_s, clock
        self._sign = Sign(())
        self._moved_s = self._worked_s = clock()

    def beat(self) -> None:
        """It moved: a token came, or there is nothing for it to do."""
        self._moved_s = self._clock()

    def feel(self, sign: Sign) -> None:
        if sign.counters and sign.counters != self._sign.counters:
            self.beat()
        if sign.processor_s > self._sign.processor_s + WORK_S:
            self._worked_s = self._clock()
        self._sign = Sign(sign.counters or self._sign.counters, sign.processor_s)

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
        limit_s = HUNG_SHARE * self._hung_after_s
        works = self._clock() - self._worked_s < limit_s
        return self.still_s >= (LONGEST_PASS * limit_s if works else limit_s)
