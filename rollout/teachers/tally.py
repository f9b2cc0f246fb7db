"""What the teachers did since somebody last asked."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts and seconds; `read` gives them by name and starts again."""

    engines: int
    since_s: float = field(default_factory=time.monotonic)
    counts: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self.counts[name] = self.counts.get(name, 0.0) + amount

    def read(self) -> dict[str, float]:
        """`queue_s` and `swap_s` are means, of a trace and of a swap; `utilisation` is the share of the
        engines' time in which they had something to score; the rest are counts."""
        now = time.monotonic()
        with self._lock:
            elapsed, counts = now - self.since_s, self.counts
            self.since_s, self.counts = now, {}

        def mean(total: str, count: str) -> float:
            return counts.get(total, 0.0) / max(counts.get(count, 0.0), 1.0)

        names = ("swaps", "traces", "tokens", "requeued", "restarts", "nonsense", "skipped")
        return {
            **{name: counts.get(name, 0.0) for name in names},
            "swap_s": mean("swap_total_s", "swaps"),
            "swap_share": counts.get("swap_total_s", 0.0) / max(elapsed * self.engines, 1e-9),
            "queue_s": mean("queue_total_s", "taken"),
            "utilisation": counts.get("busy_s", 0.0) / max(elapsed * self.engines, 1e-9),
            "tokens_per_s": counts.get("tokens", 0.0) / max(elapsed, 1e-9),
        }
