"""The result of an evaluation, and the comparison of two, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlframe.evaluation.compare import ALL, Comparison, Row

SHOWN_KS = 4


def result_table(result: Mapping[str, Any]) -> RenderableType:
    """Scores, then costs, a row a suite and domain, one for all; below it what was lost, and what is pinned."""
    ks = [k for k in result["total"]["pass_at"] if k != "1"][-SHOWN_KS:]
    scores = _table("suite", "tasks", "mean", "± s.e.", "pass@1")
    for name in (*(f"pass@{k}" for k in ks), *(f"pass^{k}" for k in ks)):
        scores.add_column(name, justify="right", no_wrap=True)
    costs = _table("of an attempt", "cut", "lost", "task fault", "tokens in", "out", "seconds")
    if "money" in result["total"]["cost"]:
        costs.add_column("money, all", justify="right", no_wrap=True)
    for name, figures, style in _rows(result):
        scores.add_row(Text(name, style=style), *_scores(figures, ks))
        costs.add_row(Text(name, style=style), *_costs(figures))
    weights, repeats = result["weights"], result["pinned"].get("eval.repeats", 1)
    guard = result["total"]["guard"]
    notes = [
        f"{repeats} attempt{'s' * (repeats > 1)} a task, errors clustered by task; lost: never a zero",
        f"weights {weights['checksum'][:12]}   settings {result['pinned_hash']} "
        f"({len(result['pinned'])} keys)",
    ]
    if guard["blocked_turns"]:
        notes.append(
            f"the guard blocked {guard['blocked_turns']} turns in {guard['attempts_blocked']} attempts"
        )
    return Group(
        scores,
        "",
        costs,
        "",
        *(Text(note, style="dim") for note in notes),
        *(
            Text(f"{f['attempts']} x fault of {f['fault']}: {f['reason']}", style="yellow")
            for f in result["total"]["faults"]
        ),
    )


def comparison_table(comparison: Comparison) -> RenderableType:
    """A row a suite, one for all."""
    table = _table("suite", "tasks", "A", "B", "B - A", "95% interval", "p", "better", "worse")
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
    suite, _, domain = row.name.partition("/")
    style = "bold" if row.name == ALL else "dim" if domain else ""
    yield Text(f"  {domain}" if domain else suite, style=style)
    yield f"{found.tasks}"
    yield f"{row.mean_a:.3f}"
    yield f"{row.mean_b:.3f}"
    yield Text(f"{found.difference:+.3f}", style=colour)
    yield Text(f"[{found.low:+.3f}, {found.high:+.3f}]")
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


def _scores(figures: Mapping[str, Any], ks: Sequence[str]) -> Iterator[str]:
    yield f"{figures['tasks']}"
    yield _number(figures["mean"])
    yield _number(figures["standard_error"])
    for group, wanted in (("pass_at", ("1", *ks)), ("pass_hat", ks)):
        for k in wanted:
            yield _number(figures[group].get(k, {}).get("value"))


def _costs(figures: Mapping[str, Any]) -> Iterator[str]:
    cost = figures["cost"]
    for rate in ("truncation_rate", "infra_failure_rate", "task_fault_rate"):
        yield f"{figures[rate]:.1%}"
    yield f"{cost['prompt_tokens_per_attempt']:,.0f}"
    yield f"{cost['sampled_tokens_per_attempt']:,.0f}"
    yield f"{cost['seconds_per_attempt']:,.2f}"
    if "money" in cost:
        yield f"{cost['money']:,.4g} {cost['currency']}"


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
