"""Pictures of evaluations: bars with their errors, one group a suite or domain, one bar a result."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlframe.durable_files import write_atomic

COLOURS = ("#3b6fb6", "#d1495b", "#5a9367", "#c98a2b")
INK = "#333333"
MOST_GROUPS = 24


def plot_results(results: Mapping[str, Mapping[str, Any]], path: Path, *, title: str) -> None:
    """`results` by their names. Mean scores with their standard errors; whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _groups(list(results.values()))
    figure = Figure(figsize=(max(6.0, 1.1 * len(groups) + 2.0), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(results)
    for index, (name, result) in enumerate(results.items()):
        found = [_find(result, group) for group in groups]
        offset = (index - (len(results) - 1) / 2) * width
        means = [f["mean"] or 0.0 if f else 0.0 for f in found]
        axes.bar(
            [place + offset for place in range(len(groups))],
            means,
            width * 0.92,
            yerr=[(f["standard_error"] or 0.0) if f else 0.0 for f in found],
            color=COLOURS[index % len(COLOURS)],
            ecolor=INK,
            capsize=3,
            label=name,
        )
        for place, mean in enumerate(means):
            axes.annotate(
                f"{mean:.2f}",
                (place + offset, 0),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="white" if mean > 0.08 else INK,
            )
    axes.set_xticks(range(len(groups)), [g[-1] for g in groups], rotation=20, ha="right")
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_ylabel("mean score ± standard error over tasks", color=INK)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=3)
    if len(results) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(path, content.getvalue())


def _groups(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """(suite,) and, where it has several, (suite, domain)."""
    groups: list[tuple[str, ...]] = []
    for result in results:
        for suite, figures in result["suites"].items():
            names = [(suite,), *((suite, domain) for domain in figures["domains"])]
            groups += [n for n in (names if len(names) > 2 else names[:1]) if n not in groups]
    return groups[:MOST_GROUPS]


def _find(result: Mapping[str, Any], group: tuple[str, ...]) -> Mapping[str, Any] | None:
    suite: Mapping[str, Any] | None = result["suites"].get(group[0])
    if suite is None or len(group) == 1:
        return suite
    domain: Mapping[str, Any] | None = suite["domains"].get(group[1])
    return domain
