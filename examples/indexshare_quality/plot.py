"""The example's picture: held-out loss over training, and the forward pass at growing length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"every_layer": "#d1495b", "shared": "#3b6fb6"}
LABELS = {"every_layer": "an indexer in every layer", "shared": "in every fourth, from the start"}
AFTERWARDS = {
    "bolted_on": ("x", "every fourth, bolted on"),
    "bolted_on_distilled_own": ("^", "… distilled, own layer's target"),
    "bolted_on_distilled_served": ("o", "… distilled, served layers' target"),
}


def plot(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    losses: Mapping[str, float],
    times: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, curve in curves.items():
        left.plot(*zip(*curve, strict=True), marker=".", color=COLOURS[name], label=LABELS[name])
    end = max(step for curve in curves.values() for step, _ in curve)
    for name, (marker, label) in AFTERWARDS.items():
        left.plot([end * 1.04], [losses[name]], marker, color="#333333", label=label, clip_on=False)
    left.set_xlabel("steps")
    left.set_ylabel("held-out loss, nats a token")
    lengths = [row["tokens"] for row in times]
    for name, colour in COLOURS.items():
        seconds = [row[f"{name}_cpu_s"] for row in times]
        right.plot(lengths, seconds, marker="o", color=colour, label=LABELS[name])
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("tokens in one sequence")
    right.set_ylabel("CPU seconds of a forward pass")
    for axes in (left, right):
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
