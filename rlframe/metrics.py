"""Metrics: one JSON line a step, always; other sinks beside it; spans for the phases of a step.

    metrics = Metrics(run.metrics, after_step=0, sinks=[...])
    with metrics.span("rollout"): ...
    metrics.log(1, {"reward/mean": 0.3})                  # {"event": "step", "step": 1, ...}
    metrics.log(1, {"held_out/mean": 0.2}, event="held_out")

Names are `group/what`, seconds end in `_s`. A line also says what has passed since the line before:
`time/total_s`, `time/<span>_s`, and `throughput/tokens_per_s` where the values count tokens. Values that
are not finite are `null`. Each (event, step) stands once, also after a resume; `read` reads a file that
is being written, or was torn.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlframe.durable_files import write_atomic

Line = dict[str, Any]
"""`event`, `step`, `unix_s`, and the values by name."""

STEP = "step"
HELD_OUT = "held_out"
COMPARED = "compared"
"""Held-out rewards of models that the student is compared with, one line each."""
VALUES = "held_out_values"


class Sink(Protocol):
    """Where metrics go besides the file. Neither call raises or takes long."""

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Gallery(Protocol):
    """A sink that takes tables and pictures too."""

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], picture: Path) -> None: ...


class Metrics:
    """The metrics of one run. Used by one thread."""

    def __init__(
        self,
        path: Path,
        *,
        after_step: int = 0,
        sinks: Sequence[Sink] = (),
        on_span: Callable[[str], None] = lambda name: None,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Goes on after `after_step` steps: what the file says about later ones is cut off.

        `on_span` hears the name of every span that begins.
        """
        self._sinks, self._on_span, self._clock_s = sinks, on_span, clock_s
        kept = [line for line in read(path) if line["step"] <= after_step]
        self._logged = {(line["event"], line["step"]) for line in kept}
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")
        self._spans_s: dict[str, float] = defaultdict(float)
        self._last_s = clock_s()
        self.history = kept

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to `time/<name>_s` of the next line, also if the block raises."""
        self._on_span(name)
        started_s = self._clock_s()
        try:
            yield
        finally:
            self._spans_s[name] += self._clock_s() - started_s

    def log(self, step: int, values: Mapping[str, float], *, event: str = STEP) -> dict[str, float]:
        """Writes one line; returns all of its values. What was logged before stays as it is."""
        now_s = self._clock_s()
        total_s, self._last_s = now_s - self._last_s, now_s
        spans = {f"time/{name}_s": seconds for name, seconds in self._spans_s.items()}
        self._spans_s.clear()
        complete = {
            **{name: float(value) for name, value in values.items()},
            **spans,
            "time/total_s": total_s,
            **throughput(values, total_s),
        }
        if (event, step) not in self._logged:
            self._logged.add((event, step))
            self._write(event, step, complete)
            for sink in self._sinks:
                sink.write(event, step, complete)
        return complete

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], picture: Path) -> None:
        """A table and a picture (PNG) to the sinks that can show them; the run directory has both already."""
        for sink in self._sinks:
            if isinstance(sink, Gallery):
                sink.show(name, rows, picture)

    def logged(self, event: str, step: int) -> bool:
        return (event, step) in self._logged

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def _write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        line = {"event": event, "step": step, "unix_s": round(time.time(), 3), **finite}
        self.history.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def throughput(values: Mapping[str, float], total_s: float) -> dict[str, float]:
    """Tokens and actions a second, from the counts `<group>/tokens` and `<group>/actions`, if any."""
    rates = {}
    for what in ("tokens", "actions"):
        counts = [value for name, value in values.items() if name.split("/")[-1] == what]
        if counts and total_s > 0:
            rates[f"throughput/{what}_per_s"] = float(counts[0]) / total_s
    return rates


def read(path: Path) -> list[Line]:
    """The lines of a metrics file, in order. One without its line end was torn by a kill: left out.

    ValueError for a line that is not one of ours: the file was edited.
    """
    if not path.exists():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")
    found: list[Line] = []
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            found.append({**line, "event": str(line["event"]), "step": int(line["step"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a line of metrics: {error}") from error
    return found


def series(history: Sequence[Line], name: str, *, event: str = STEP) -> list[tuple[int, float]]:
    """(step, value) of one metric, where it is a number."""
    return [
        (line["step"], line[name])
        for line in history
        if line["event"] == event and line.get(name) is not None
    ]


def domains(history: Sequence[Line], *, event: str = STEP) -> list[str]:
    """The domains whose reward was logged."""
    group = "reward/" if event == STEP else f"{HELD_OUT}/"
    names = {
        name.removeprefix(group)
        for line in history
        if line["event"] == event
        for name in line
        if name.startswith(group)
    }
    return sorted(names - {"mean"})
