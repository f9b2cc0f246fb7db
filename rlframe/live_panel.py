"""How a run looks: its history as lines of text and as rich renderables. Nothing here keeps state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlframe.metrics import HELD_OUT, STEP, VALUES, Line, domains, series
from rlframe.summary import Summary

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 48
BAR_WIDTH = 24
GAP_THAT_WORRIES = 1e-2

FIGURES = (
    ("tokens/s", "throughput/tokens_per_s"),
    ("staleness", "staleness/mean"),
    ("KL", "policy/kl"),
    ("entropy", "policy/entropy"),
    ("explained var.", "critic/explained_variance"),
    ("largest gap", "gap/max"),
    ("mean gap", "gap/mean"),
    ("held-out loss", "sft/held_out_loss"),
)
"""What stands beside the phases, where it was measured."""
CURVES = (("reward", "reward/mean"), ("loss", "sft/loss"), ("loss", "value/loss"))


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the panel shows."""

    title: str
    total_steps: int
    history: Sequence[Line]
    elapsed_s: float
    remaining_s: float | None
    doing: str = ""
    """The phase under way, with its progress."""
    warnings: Sequence[str] = field(default_factory=tuple)


def panel(picture: Picture) -> RenderableType:
    latest = _latest(picture.history)
    body: list[RenderableType] = [_progress(picture), Text()]
    body += _curves(picture.history)
    body += [Text(), _phases_and_figures(latest)]
    if picture.doing:
        body.append(Text(f"now  {picture.doing}", style="dim"))
    body += [Text(f"! {warning}", style="yellow") for warning in picture.warnings]
    return Panel(Group(*body), title=f" {picture.title} ", title_align="left", padding=(0, 1))


def step_line(values: Mapping[str, float], *, step: int, total_steps: int) -> str:
    """A step on one line, for logs."""
    parts = [f"step {step}/{total_steps}"]
    for label, name in (*CURVES, *FIGURES):
        if name in values:
            parts.append(f"{label} {number(values[name])}")
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in _phases(values))
    parts.append(f"{values.get('time/total_s', 0.0):.2f} s" + (f" ({phases})" if phases else ""))
    return "  ".join(parts)


def held_out_line(values: Mapping[str, float], *, step: int) -> str:
    by_domain = ", ".join(
        f"{name.removeprefix('held_out/')} {number(value)}"
        for name, value in values.items()
        if name.startswith("held_out/") and name != "held_out/mean"
    )
    mean = values.get("held_out/mean", math.nan)
    return f"step {step}  held-out reward {number(mean)}" + (
        f"  ({by_domain})" if by_domain else ""
    )


def values_line(values: Mapping[str, float], *, step: int) -> str:
    """What a critic in pretraining says of held-out trajectories."""
    biases = ", ".join(
        f"{name.removeprefix('value/bias_')} {number(value)}"
        for name, value in values.items()
        if name.startswith("value/bias_")
    )
    explained = number(values.get("value/explained_variance", math.nan))
    return f"step {step}  held-out explained variance {explained}  (bias: {biases})"


def summary_table(summary: Summary, *, files: Mapping[str, str]) -> RenderableType:
    """The end of a run: what it reached, what it took, where its things are."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("steps", f"{summary['steps']:,} in {duration(summary['seconds'])}")
    if summary["tokens"]:
        speed = summary["tokens_per_s"]
        rate = f", {speed:,.0f} tokens/s" if speed else ""
        table.add_row("tokens", f"{summary['tokens']:,} ({summary['actions']:,} sampled){rate}")
    for name, label in (("held_out", "held-out reward"), ("reward", "reward"), ("loss", "loss")):
        if name in summary:
            table.add_row(label, _rise(summary[name]))
    if "explained_variance" in summary:
        table.add_row("held-out explained variance", _rise(summary["explained_variance"]))
    for domain, ends in summary.get("held_out", {}).get("domains", {}).items():
        table.add_row(f"  {domain}", _rise(ends))
    if summary["largest_logprob_gap"] is not None:
        table.add_row(
            "largest gap", f"{number(summary['largest_logprob_gap'])} train - rollout logprob"
        )
    for label, path in files.items():
        table.add_row(label, path)
    return Panel(table, title=" result ", title_align="left", padding=(0, 1))


def sparkline(values: Sequence[float], width: int) -> str:
    """Means of up to `width` equal parts, as bars; rewards between 0 and 1 keep that scale."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]
    low, high = (0.0, 1.0) if min(means) >= 0 and max(means) <= 1 else (min(means), max(means))
    scale = (len(BARS) - 1) / (high - low or 1.0)
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def number(value: float) -> str:
    """Short, with the digits that matter."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 0.01:
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 100 else f"{value:.1f}"


def duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _latest(history: Sequence[Line]) -> Line:
    steps = [line for line in history if line["event"] == STEP]
    return steps[-1] if steps else {"event": STEP, "step": 0}


def _progress(picture: Picture) -> RenderableType:
    done = _latest(picture.history)["step"]
    left = "" if picture.remaining_s is None else f", about {duration(picture.remaining_s)} left"
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    row.add_row(
        Text(f"step {done}/{picture.total_steps}", style="bold"),
        ProgressBar(total=max(picture.total_steps, 1), completed=done),
        f"{duration(picture.elapsed_s)}{left}",
    )
    return row


def _curves(history: Sequence[Line]) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=8)
    table.add_column(justify="right")
    table.add_column()
    for label, name in CURVES:
        values = [value for _, value in series(history, name)]
        if values:
            curve = Text(sparkline(values, CURVE_WIDTH), style="green")
            table.add_row(Text(label, style="bold"), Text(number(values[-1]), style="bold"), curve)
    for name, event, what in (
        ("held_out/mean", HELD_OUT, ""),
        ("value/explained_variance", VALUES, "explained variance "),
    ):
        held_out = series(history, name, event=event)
        if held_out:
            (first_step, first), (last_step, last) = held_out[0], held_out[-1]
            note = f"{what}at step {last_step}"
            if last_step > first_step:
                note += f", from {number(first)} at step {first_step}"
            table.add_row(
                Text("held out", style="bold"), Text(number(last), style="bold"), Text(note, "dim")
            )
    by_domain = {d: series(history, f"reward/{d}") for d in domains(history)}
    if len(by_domain) > 1:
        text = "   ".join(
            f"{d} {number(points[-1][1])}" for d, points in by_domain.items() if points
        )
        return [table, Text(text, style="dim")]
    return [table] if table.row_count else [Text("starting", style="dim")]


def _phases(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """(phase, seconds), in the order in which they were logged."""
    return [
        (name.removeprefix("time/").removesuffix("_s"), value)
        for name, value in values.items()
        if name.startswith("time/") and name != "time/total_s"
    ]


def _phases_and_figures(latest: Line) -> RenderableType:
    total_s = latest.get("time/total_s") or 1.0
    phases = Table.grid(padding=(0, 1))
    phases.add_column(min_width=9)
    phases.add_column(width=BAR_WIDTH)
    phases.add_column(justify="right", min_width=8)
    for name, seconds in _phases(latest):
        bar = "━" * max(1, round(BAR_WIDTH * min(seconds / total_s, 1.0)))
        phases.add_row(name, Text(bar, style="cyan"), f"{seconds:.2f} s")
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="dim")
    figures.add_column(justify="right")
    for label, name in FIGURES:
        value = latest.get(name)
        if value is not None:
            worrying = name == "gap/max" and value > GAP_THAT_WORRIES
            figures.add_row(label, Text(number(value), style="yellow" if worrying else ""))
    both = Table.grid(padding=(0, 6))
    both.add_row(phases, figures)
    return both


def _rise(ends: Mapping[str, float]) -> str:
    return f"{number(ends['first'])} → {number(ends['last'])}  (best {number(ends['best'])})"
