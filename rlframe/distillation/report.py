"""What a distillation came to, by domain: the student before, during and after, its teacher, the best single expert,
the average of the experts' weights, the divergence from the teacher, and what was forgotten. A table and a plot.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from rlframe.durable_files import write_atomic
from rlframe.metrics import HELD_OUT, Line, series

AVERAGE = "weight average"
MEAN = "mean"
PICTURE = "distillation.png"
COLOURS = {
    "before": "#c8c8c8",
    "weight average": "#edae49",
    "best single": "#66a182",
    "teacher": "#8aa9d6",
    "student": "#d1495b",
}


@dataclass(frozen=True, slots=True)
class Row:
    """Held-out rewards of one domain, or the mean of all domains. None where nobody measured it."""

    domain: str
    teacher: float | None
    before: float | None
    student: float | None
    """After the last step."""
    best_single: float | None
    """Of the teacher that is best over all domains."""
    weight_average: float | None
    kl_before: float | None
    """Mean log ratio of student to teacher over held-out actions, nats a token."""
    kl: float | None
    forgotten: float | None
    """The student's best reward of the run, less its last: at least 0."""

    @property
    def of_teacher(self) -> float | None:
        """The student's share of its teacher's reward."""
        if self.student is None or not self.teacher:
            return None
        return self.student / self.teacher

    def shown(self) -> dict[str, Any]:
        return {**asdict(self), "of_teacher": self.of_teacher}

    def numbers(self) -> dict[str, float]:
        """Those that there are."""
        return {k: float(v) for k, v in self.shown().items() if k != "domain" and v is not None}


@dataclass(frozen=True, slots=True)
class Report:
    rows: tuple[Row, ...]
    """By domain; the last is their mean, in which every domain counts the same however many held-out tasks it has."""
    best_single: str
    """Which teacher that is; empty where none was compared."""
    curves: Mapping[str, Sequence[tuple[int, float]]]
    """The student's held-out reward by domain: (step, reward)."""


def report_of(
    history: Sequence[Line],
    compared: Mapping[str, Mapping[str, float]],
    teachers: Mapping[str, Sequence[str]],
    *,
    best: Mapping[str, str],
) -> Report:
    """`compared`: held-out rewards of every teacher and of the average; `teachers`: by domain, all that teach it
    (their mean is shown, or that of the `best`)."""
    experts = {name: rewards for name, rewards in compared.items() if name != AVERAGE}
    best_single = max(
        experts, key=lambda name: mean(experts[name][domain] for domain in teachers), default=""
    )
    curves = {domain: series(history, f"held_out/{domain}", event=HELD_OUT) for domain in teachers}

    def row(domain: str) -> Row:
        rewards = [value for _, value in curves[domain]]
        kl = [v for _, v in series(history, f"teacher_kl/{domain}", event=HELD_OUT)]
        return Row(
            domain=domain,
            teacher=teacher_reward(domain),
            before=rewards[0] if rewards else None,
            student=rewards[-1] if rewards else None,
            best_single=experts.get(best_single, {}).get(domain),
            weight_average=compared.get(AVERAGE, {}).get(domain),
            kl_before=kl[0] if kl else None,
            kl=kl[-1] if kl else None,
            forgotten=max(rewards) - rewards[-1] if rewards else None,
        )

    def teacher_reward(domain: str) -> float | None:
        names = [best[domain]] if domain in best else list(teachers[domain])
        found = [experts[n][domain] for n in names if n in experts and domain in experts[n]]
        return sum(found) / len(found) if found else None

    rows = [row(domain) for domain in teachers]
    together = _mean_curve(list(curves.values()))
    return Report((*rows, _mean_row(rows, together)), best_single, {**curves, MEAN: together})


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """At the steps at which every domain was measured."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [(step, mean(curve[step] for curve in by_step)) for step in steps]


def _mean_row(rows: Sequence[Row], curve: Sequence[tuple[int, float]]) -> Row:
    """Of what every domain has; forgotten is what the mean itself has lost."""
    numbers = [row.numbers() for row in rows]
    known = set.intersection(*(set(each) for each in numbers)) - {"of_teacher", "forgotten"}
    measures = [field.name for field in fields(Row) if field.name != "domain"]
    values: dict[str, float | None] = dict.fromkeys(measures)
    values |= {key: mean(each[key] for each in numbers) for key in known}
    rewards = [reward for _, reward in curve]
    values["forgotten"] = max(rewards) - rewards[-1] if rewards else None
    return Row(domain=MEAN, **values)


def write_report(report: Report, directory: Path, *, title: str) -> None:
    """distillation.json, .csv and .png in the run directory; the table on the terminal."""
    rows = [row.shown() for row in report.rows]
    described = {"best_single": report.best_single, "rows": rows, "student": dict(report.curves)}
    write_atomic(directory / "distillation.json", json.dumps(described, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(directory / "distillation.csv", text.getvalue())
    _plot(report, directory / PICTURE, title=title)
    Console().print(_table(report))


def _table(report: Report) -> Table:
    """Fits into 80 columns, cutting nothing off."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("domain", overflow="fold")
    for name in (
        "before",
        "student",
        "teacher",
        "share",
        "single",
        "avg.",
        "KL 0",
        "KL",
        "lost",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.caption = (
        f"held-out rewards; share: student / teacher; single: {report.best_single or 'none'}, the best teacher over "
        "all; avg.: of the teachers' weights; KL 0, KL: to the teacher, before and after; lost: the student's best reward "
        "less its last"
    )
    for row in report.rows:
        values = (row.before, row.student, row.teacher, row.of_teacher, row.best_single)
        more = (row.weight_average, row.kl_before, row.kl, row.forgotten)
        table.add_row(row.domain, *("-" if v is None else f"{v:.2f}" for v in (*values, *more)))
    return table


def _plot(report: Report, path: Path, *, title: str) -> None:
    """Bars a domain, and the student's way there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 0.9 * len(report.rows) + 3), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    bars, way = figure.subplots(2, 1)
    _bars(bars, report)
    for domain, points in report.curves.items():
        thick = domain == MEAN
        way.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=COLOURS["student"] if thick else "#bbbbbb",
            linewidth=2.2 if thick else 0.9,
            label="mean of the domains" if thick else None,
            zorder=3 if thick else 1,
        )
    way.set_xlabel("step")
    way.set_ylabel("student's held-out reward")
    way.legend(frameon=False, fontsize=9)
    bars.set_title(title, loc="left", fontsize=12)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_atomic(path, content.getvalue())


def _bars(axes: Any, report: Report) -> None:
    shown = {
        "before": [row.before for row in report.rows],
        "weight average": [row.weight_average for row in report.rows],
        "best single": [row.best_single for row in report.rows],
        "teacher": [row.teacher for row in report.rows],
        "student": [row.student for row in report.rows],
    }
    width = 0.85 / len(shown)
    for place, (name, values) in enumerate(shown.items()):
        at = [index + (place - 2) * width for index in range(len(values))]
        axes.bar(at, [v or 0.0 for v in values], width, color=COLOURS[name], label=name)
    axes.set_xticks(
        range(len(report.rows)), [row.domain for row in report.rows], rotation=30, ha="right"
    )
    axes.set_ylabel("held-out reward")
    # Room for the legend.
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])
    axes.legend(frameon=False, ncols=5, fontsize=9, loc="upper left")
