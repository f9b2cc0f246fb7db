"""The reward curve as a PNG: training reward a step, held-out points, domains as light lines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlframe.diagnosis import THIRDS
from rlframe.durable_files import write_atomic
from rlframe.metrics import HELD_OUT, VALUES, Line, domains, series

TRAINING, HELD_OUT_COLOUR, INK = "#3b6fb6", "#d1495b", "#333333"
DOMAIN_COLOURS = (
    "#8aa9d6",
    "#a3c4a8",
    "#d9b48f",
    "#b9a3cf",
    "#8fc1c9",
    "#c9a0ac",
    "#b5b88f",
    "#a8a8a8",
)

Points = Sequence[tuple[int, float]]


def reward_curve(history: Sequence[Line], path: Path, *, title: str) -> None:
    """Writes `path`, whole or not at all. SFT shows its loss in place of the reward, value
    pretraining the held-out explained variance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rewards = bool(
        series(history, "reward/mean") or series(history, "held_out/mean", event=HELD_OUT)
    )
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if rewards:
        _rewards(axes, history)
    elif series(history, "value/explained_variance", event=VALUES):
        _values(axes, history)
    else:
        _losses(axes, history)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel("step", color=INK)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
    axes.tick_params(colors=INK, length=3)
    axes.margins(x=0.03)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=INK)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(path, content.getvalue())


def smoothed(points: Points, window: int) -> Points:
    """Mean of the last `window` values at every step (fewer at the start)."""
    values = [value for _, value in points]
    parts = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return [(step, sum(part) / len(part)) for (step, _), part in zip(points, parts, strict=True)]


def _rewards(axes: Any, history: Sequence[Line]) -> None:
    training = series(history, "reward/mean")
    window = max(1, len(training) // 30)
    by_domain = domains(history)
    for index, domain in enumerate(by_domain if len(by_domain) > 1 else ()):
        colour = DOMAIN_COLOURS[index % len(DOMAIN_COLOURS)]
        points = smoothed(series(history, f"reward/{domain}"), window)
        axes.plot(*_columns(points), color=colour, linewidth=0.9, label=domain)
    if training:
        axes.plot(*_columns(training), color=TRAINING, linewidth=0.8, alpha=0.35)
        mean = smoothed(training, window)
        axes.plot(*_columns(mean), color=TRAINING, linewidth=2.2, label="training")
    held_out = series(history, "held_out/mean", event=HELD_OUT)
    if held_out:
        axes.plot(
            *_columns(held_out),
            color=HELD_OUT_COLOUR,
            linewidth=1.4,
            linestyle=(0, (4, 2)),
            marker="o",
            markersize=6,
            label="held out",
            zorder=5,
        )
        for point in {held_out[0], held_out[-1]}:
            _name(axes, point)
    shown = [value for _, value in (*training, *held_out)]
    if shown and min(shown) >= 0 and max(shown) <= 1:
        axes.set_ylim(-0.03, 1.08)
    axes.set_ylabel("mean reward", color=INK)


def _losses(axes: Any, history: Sequence[Line]) -> None:
    training = series(history, "sft/loss")
    held_out = series(history, "sft/held_out_loss")
    if training:
        axes.plot(*_columns(training), color=TRAINING, linewidth=1.6, label="training")
    if held_out:
        axes.plot(
            *_columns(held_out), color=HELD_OUT_COLOUR, marker="o", markersize=5, label="held out"
        )
        _name(axes, held_out[-1])
    axes.set_ylabel("loss (nats a token)", color=INK)


def _values(axes: Any, history: Sequence[Line]) -> None:
    """Held out: all actions, and by thirds of a trajectory's actions."""
    for third, colour in zip(THIRDS, DOMAIN_COLOURS, strict=False):
        points = series(history, f"value/explained_variance_{third}", event=VALUES)
        axes.plot(*_columns(points), color=colour, linewidth=1.2, label=f"{third} third")
    points = series(history, "value/explained_variance", event=VALUES)
    axes.plot(
        *_columns(points),
        color=HELD_OUT_COLOUR,
        linewidth=2.2,
        marker="o",
        markersize=5,
        label="held out, all actions",
    )
    for point in {points[0], points[-1]}:
        _name(axes, point)
    axes.set_ylabel("explained variance of returns", color=INK)


def _name(axes: Any, point: tuple[int, float]) -> None:
    """The value beside its point."""
    axes.annotate(
        f"{point[1]:.2f}",
        xy=point,
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        color=HELD_OUT_COLOUR,
        fontsize=10,
        fontweight="bold",
        zorder=6,
    )


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
