"""The terminal view of a run: one panel that changes on a terminal, one line a step elsewhere.

A `View` is a sink of `rlframe.metrics.Metrics`, so the loop does not know it:

    with View(title="smoke", total_steps=120, live="auto") as view:
        view.say("2 engines are up")
        metrics = Metrics(path, after_step=0, sinks=[view], on_span=view.phase)
        view.restore(metrics.history)
        ...                                 # metrics.log(...) shows itself
        view.summary(summarise(metrics.history), files={"curve": "runs/smoke/reward.png"})
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live

from rlframe.advice import advice
from rlframe.live_panel import (
    Picture,
    held_out_line,
    panel,
    step_line,
    summary_table,
    values_line,
)
from rlframe.metrics import HELD_OUT, STEP, VALUES, Line
from rlframe.summary import Summary

REFRESH_PER_S = 2.0
PICTURE_WIDTH = 100
SHOWN_WARNINGS = 3


class View:
    """See the module's docstring. `write`, `phase` and `progress` may come from any thread."""

    def __init__(
        self, *, title: str, total_steps: int, live: str, console: Console | None = None
    ) -> None:
        """`live`: `auto` (on a terminal), `on`, `off` (a line a step)."""
        self._console = console or Console(
            force_terminal=True if live == "on" else None, highlight=False
        )
        self._title, self._total_steps = title, total_steps
        self._history: list[Line] = []
        self._warnings: dict[str, str] = {}
        self._doing, self._progress = "", ""
        self._started_s = time.monotonic()
        self._stepped_s: list[float] = []
        is_live = live == "on" or (live == "auto" and self._console.is_terminal)
        self._live = (
            Live(
                get_renderable=self.render,
                console=self._console,
                refresh_per_second=REFRESH_PER_S,
                transient=True,
            )
            if is_live
            else None
        )

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the last panel on the terminal and the cursor below it; again is harmless."""
        if self._live and self._live.is_started:
            self._live.stop()
            self._console.print(self.render())

    def say(self, text: str) -> None:
        """A line of progress before the first step."""
        self._doing = text
        if not self._live:
            self._console.print(text, markup=False, soft_wrap=True)

    def restore(self, history: Sequence[Line]) -> None:
        """What a resumed run logged before."""
        self._history = [dict(line) for line in history]

    def phase(self, name: str) -> None:
        """The step's phase that begins now; empty: none."""
        self._doing, self._progress = name, ""

    def progress(self, done: int, wanted: int) -> None:
        """Of the phase under way."""
        self._progress = f"{done}/{wanted}"

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """A line of metrics; what is worth a warning is said once."""
        self._history.append({"event": event, "step": step, **values})
        if event == STEP:
            self._stepped_s.append(time.monotonic())
        if not self._live:
            if event == STEP:
                line = step_line(values, step=step, total_steps=self._total_steps)
                self._console.print(line, markup=False, soft_wrap=True)
            elif event == HELD_OUT:
                self._console.print(held_out_line(values, step=step), markup=False, soft_wrap=True)
            elif event == VALUES:
                self._console.print(values_line(values, step=step), markup=False, soft_wrap=True)
        for key, text in advice(self._history).items():
            self._warn(key, text)

    def warn(self, text: str) -> None:
        """Once, however often it is said."""
        self._warn(text, text)

    def summary(self, summary: Summary, *, files: Mapping[str, str]) -> None:
        """The result; ends the live panel. `files` by what they are."""
        self.phase("")
        self.close()
        self._console.print(summary_table(summary, files=files))

    def render(self) -> RenderableType:
        doing = f"{self._doing} {self._progress}".strip()
        return panel(
            Picture(
                title=self._title,
                total_steps=self._total_steps,
                history=self._history,
                elapsed_s=time.monotonic() - self._started_s,
                remaining_s=self._remaining_s(),
                doing=doing,
                warnings=list(self._warnings.values())[-SHOWN_WARNINGS:],
            )
        )

    def _remaining_s(self) -> float | None:
        recent = self._stepped_s[-20:]
        if len(recent) < 2:
            return None
        done = max(int(line["step"]) for line in self._history if line["event"] == STEP)
        per_step_s = (recent[-1] - recent[0]) / (len(recent) - 1)
        return per_step_s * (self._total_steps - done) if done < self._total_steps else None

    def _warn(self, key: str, text: str) -> None:
        if key not in self._warnings and not self._live:
            self._console.print(f"warning: {text}", markup=False, soft_wrap=True)
        self._warnings[key] = text


def save_picture(
    path: Path,
    history: Sequence[Line],
    *,
    title: str,
    total_steps: int,
    summary: Summary | None = None,
) -> None:
    """The panel (and the result) of a run as an SVG file, for a README."""
    console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
    lines = [line for line in history if line["event"] == STEP]
    seconds = [line.get("time/total_s") or 0.0 for line in lines]
    remaining = sum(seconds) / len(seconds) * (total_steps - lines[-1]["step"]) if lines else None
    console.print(
        panel(
            Picture(
                title=title,
                total_steps=total_steps,
                history=history,
                elapsed_s=sum(line.get("time/total_s") or 0.0 for line in history),
                remaining_s=remaining or None,
            )
        )
    )
    if summary is not None:
        console.print(summary_table(summary, files={}))
    console.save_svg(str(path), title="rlframe", code_format=_SVG)


_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: arial; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own template without its fonts, which it would fetch from the network."""
