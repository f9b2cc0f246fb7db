"""A plan as a picture: operations of a token by part, and what sharing saves under each counting."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rlframe.durable_files import write_atomic
from rlframe.model_costs.plan import AtContext, Plan

INK = "#333333"
PARTS = {"linear": "#3b6fb6", "core": "#e0a458", "indexer": "#d1495b"}
LINES = ("#d1495b", "#e0a458", "#3b6fb6", "#8a8a8a")


def plot_plan(plan: Plan, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = any(at.ratios for at in plan.by_context)
    figure = Figure(figsize=(11.0 if shares else 6.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if shares else 1, squeeze=False)[0]
    _operations(panels[0], plan)
    if shares:
        _ratios(panels[1], plan)
    for axes in panels:
        _style(axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(path, content.getvalue())


def _operations(axes: Any, plan: Plan) -> None:
    """Stacked bars by context; where indexers are shared, a second bar without sharing beside it."""
    width = 0.38 if plan.by_context and plan.by_context[0].every_layer else 0.6
    for place, at in enumerate(plan.by_context):
        left = place - width / 2 if at.every_layer else place
        _bar(axes, left, width, at, every=False, labelled=place == 0)
        if at.every_layer:
            _bar(axes, place + width / 2, width, at, every=True, labelled=False)
    axes.set_xticks(range(len(plan.by_context)), [_tokens(at.context) for at in plan.by_context])
    axes.set_ylabel("GFLOP a token, forward", color=INK)
    axes.set_xlabel("tokens before it", color=INK)
    title = "operations of a token"
    if plan.schedule and plan.schedule.full < plan.schedule.layers:
        title += f": {plan.schedule.full} indexers, hatched: {plan.schedule.layers}"
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _bar(axes: Any, x: float, width: float, at: AtContext, *, every: bool, labelled: bool) -> None:
    flops = at.every_layer if every and at.every_layer else at.flops
    bottom = 0.0
    names = {"linear": "linear", "core": "core attention", "indexer": "indexer"}
    for part, colour in PARTS.items():
        height = {"linear": flops.linear, "core": flops.core, "indexer": flops.indexer}[part] / 1e9
        axes.bar(
            x,
            height,
            width * 0.94,
            bottom=bottom,
            color=colour,
            hatch="///" if every else None,
            edgecolor="white",
            linewidth=0.5,
            label=names[part] if labelled and height else None,
        )
        bottom += height


def _ratios(axes: Any, plan: Plan) -> None:
    contexts = [at.context for at in plan.by_context]
    for index, counting in enumerate(plan.by_context[-1].ratios):
        values = [at.ratios[index].ratio for at in plan.by_context]
        label = f"{counting.name}: {counting.counts} ({values[-1]:.2f}x)"
        style = "--" if counting.name == "D" else "-"
        axes.plot(contexts, values, style, color=LINES[index], label=label, linewidth=1.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [_tokens(context) for context in contexts])
    axes.minorticks_off()
    axes.set_ylim(bottom=1.0)
    axes.set_xlabel("tokens before it", color=INK)
    axes.set_title("every-layer indexers / shared indexers", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")


def _style(axes: Any) -> None:
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
    axes.tick_params(colors=INK, length=3)


def _tokens(count: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if count % size == 0:
            return f"{count // size}{unit}"
    return f"{count:,}"
