"""The report's rows, from a history of metrics and the comparison."""

import json

import pytest

from rlframe.distillation.report import AVERAGE, report_of, write_report
from rlframe.metrics import HELD_OUT

HISTORY = [
    {"event": HELD_OUT, "step": 0, "held_out/a": 0.2, "held_out/b": 0.1, "held_out/mean": 0.15, "teacher_kl/a": 2.0},
    {"event": HELD_OUT, "step": 5, "held_out/a": 0.9, "held_out/b": 0.4, "held_out/mean": 0.65, "teacher_kl/a": 0.5},
    {"event": HELD_OUT, "step": 9, "held_out/a": 0.8, "held_out/b": 0.6, "held_out/mean": 0.7, "teacher_kl/a": 0.1},
]  # fmt: skip
COMPARED = {
    "x": {"a": 1.0, "b": 0.0, "mean": 0.5},
    "y": {"a": 0.3, "b": 0.8, "mean": 0.55},
    "z": {"a": 0.5, "b": 0.4, "mean": 0.45},
    AVERAGE: {"a": 0.25, "b": 0.35, "mean": 0.3},
}


def test_rows_by_domain():
    report = report_of(HISTORY, COMPARED, {"a": ["x"], "b": ["y", "z"]}, best={})
    assert report.best_single == "y"
    a, b, mean = report.rows
    assert (a.domain, a.before, a.student, a.teacher) == ("a", 0.2, 0.8, 1.0)
    assert (a.best_single, a.weight_average, a.kl_before, a.kl) == (0.3, 0.25, 2.0, 0.1)
    assert a.forgotten == pytest.approx(0.1)
    assert a.of_teacher == pytest.approx(0.8)
    assert b.teacher == pytest.approx(0.6)  # of a mixture: the mean
    assert b.kl is None
    assert mean.teacher == pytest.approx(0.8)
    assert (mean.best_single, mean.student) == (pytest.approx(0.55), pytest.approx(0.7))
    assert mean.kl is None, "not of every domain"
    assert report.curves["mean"] == [
        (0, pytest.approx(0.15)),
        (5, pytest.approx(0.65)),
        (9, pytest.approx(0.7)),
    ]


def test_every_domain_counts_the_same_whatever_its_number_of_tasks():
    """The evaluation's own mean is over tasks; here nine of ten are of `a`."""
    history = [
        {**line, "held_out/mean": 0.9 * line["held_out/a"] + 0.1 * line["held_out/b"]}
        for line in HISTORY
    ]
    compared = {
        name: {**rewards, "mean": 0.9 * rewards["a"] + 0.1 * rewards["b"]}
        for name, rewards in COMPARED.items()
    }
    assert report_of(history, compared, {"a": ["x"], "b": ["y"]}, best={}) == report_of(
        HISTORY, COMPARED, {"a": ["x"], "b": ["y"]}, best={}
    )


def test_the_best_teacher_of_a_domain_and_none_compared():
    report = report_of(HISTORY, COMPARED, {"b": ["y", "z"]}, best={"b": "y"})
    assert report.rows[0].teacher == 0.8
    bare = report_of(HISTORY, {}, {"a": ["x"]}, best={})
    assert bare.best_single == ""
    assert bare.rows[0].teacher is None
    assert bare.rows[0].of_teacher is None


def test_files(tmp_path, capsys):
    report = report_of(HISTORY, COMPARED, {"a": ["x"], "b": ["y", "z"]}, best={})
    write_report(report, tmp_path, title="merge")
    rows = json.loads((tmp_path / "distillation.json").read_text())["rows"]
    assert [row["domain"] for row in rows] == ["a", "b", "mean"]
    assert rows[0]["of_teacher"] == pytest.approx(0.8)
    assert (tmp_path / "distillation.csv").read_text().startswith("domain,teacher,before,student")
    assert (tmp_path / "distillation.png").stat().st_size > 10_000
    shown = " ".join(capsys.readouterr().out.split())
    assert "single: y, the best teacher over all" in shown
    assert "a 0.20 0.80 1.00 0.80 0.30 0.25 2.00 0.10 0.10" in shown
