"""The result of an evaluation, and the comparison of two, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlframe.evaluation.compare import Comparison, Row

SHOWN_KS = 4


def result_table(result: Mapping[str, Any]) -> RenderableType:
    """A row a suite and domain, one for all; below it what was lost, and what is pinned."""
    ks = [k for k in result["total"]["pass_at"] if k != "1"][-SHOWN_KS:]
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("suite")
    costs = ["tokens in", "out", "s", *(["money"] if "money" in result["total"]["cost"] else [])]
    for name in (
        "tasks",
        "mean ± s.e.",
        "pass@1",
        *(f"pass@{k}" for k in ks),
        *(f"pass^{k}" for k in ks),
        "cut",
        "lost",
        *costs,
    ):
        table.add_column(name, justify="right")
    for name, figures, style in _rows(result):
        table.add_row(Text(name, style=style), *_cells(figures, ks))
    weights, repeats = result["weights"], result["pinned"].get("eval.repeats", 1)
    lines: list[RenderableType] = [
        table,
        Text(
            f"{repeats} attempt{'s' * (repeats > 1)} a task; errors clustered by task; cut: truncated; "
            "lost: our side failed, never a zero; cost: of an attempt",
            style="dim",
        ),
        Text(
            f"weights {weights['checksum'][:12]}   settings {result['pinned_hash']} "
            f"({len(result['pinned'])} keys)",
            style="dim",
        ),
    ]
    lines += [
        Text(f"{f['attempts']} x fault of {f['fault']}: {f['reason']}", style="yellow")
        for f in result["total"]["faults"]
    ]
    return Group(*lines)


def comparison_table(comparison: Comparison) -> RenderableType:
    """A row a suite, one for all."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("suite")
    for name in ("tasks", "A", "B", "B - A", "95% interval", "p", "better", "worse"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        table.add_row(*_comparison_cells(row))
    notes = [
        f"A {comparison.names[0]}",
        f"B {comparison.names[1]}",
        "paired by task: sign-flip permutation test"
        + (
            " (exact)"
            if all(r.paired.exact for r in comparison.rows)
            else " (some drawn, 100,000 each)"
        )
        + "; interval by the bootstrap over tasks",
    ]
    if comparison.unpaired:
        notes.append(f"{comparison.unpaired} tasks have attempts that count on one side only")
    return Group(
        table,
        *(Text(note, style="dim") for note in notes),
        *(Text(f"differs: {d}", style="yellow") for d in comparison.differing),
    )


def _comparison_cells(row: Row) -> Iterator[RenderableType]:
    found = row.paired
    sure = found.low > 0 or found.high < 0
    colour = ("green" if found.difference > 0 else "red") if sure else ""
    yield Text(row.name, style="bold" if row.name == "all" else "")
    yield f"{found.tasks}"
    yield f"{row.mean_a:.3f}"
    yield f"{row.mean_b:.3f}"
    yield Text(f"{found.difference:+.3f}", style=colour)
    yield f"[{found.low:+.3f}, {found.high:+.3f}]".replace("[", "\\[")
    yield f"{found.p_value:.2g}"
    yield f"{found.better}"
    yield f"{found.worse}"


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    for suite, figures in result["suites"].items():
        yield suite, figures, ""
        domains = figures["domains"]
        if len(domains) > 1:
            for domain, of_domain in domains.items():
                yield f"  {domain}", of_domain, "dim"
    if len(result["suites"]) > 1:
        yield "all", result["total"], "bold"


def _cells(figures: Mapping[str, Any], ks: Sequence[str]) -> Iterator[str]:
    cost = figures["cost"]
    yield f"{figures['tasks']}"
    error = figures["standard_error"]
    yield f"{_number(figures['mean'])} ± {_number(error)}"
    yield _number(figures["pass_at"].get("1", {}).get("value"))
    for group in ("pass_at", "pass_hat"):
        for k in ks:
            yield _number(figures[group].get(k, {}).get("value"))
    yield f"{figures['truncation_rate']:.0%}"
    yield f"{figures['infra_failure_rate'] + figures['task_fault_rate']:.0%}"
    yield f"{cost['prompt_tokens_per_attempt']:,.0f}"
    yield f"{cost['sampled_tokens_per_attempt']:,.0f}"
    yield f"{cost['seconds_per_attempt']:.2f}"
    if "money" in cost:
        yield f"{cost['money']:,.2f} {cost['currency']}"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
