"""Going on with an evaluation: only by the same settings and weights; and comparing two results."""

import io
import json

import numpy as np
import pytest
from evaluation_attempts import measured
from rich.console import Console

from rlframe.cli.main import main
from rlframe.errors import UserError
from rlframe.evaluation import record
from rlframe.evaluation.compare import compare
from rlframe.evaluation.result import Rules, per_task, summarise
from rlframe.evaluation.table import comparison_table, result_table
from rlframe.inspect import run_inspect
from rlframe.store import TrajectoryStore
from rlframe.weights import Layout, SafetensorsWriter

RULES = Rules(repeats=2, solved_from=1.0, task_faults="exclude")
PINS = {"rollout.sampling.temperature": 1.0, "eval.repeats": 2}


def write(directory, scores, *, pins=PINS, checksum="aa" * 16, suite="s"):
    """A result of two attempts a task."""
    attempts = [
        measured(f"{suite}/t{i}", score, repeat=r, domain="de"[i % 2])
        for i, pair in enumerate(scores)
        for r, score in enumerate(pair)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    identity = record.Identity(pins, {"path": "m", "checksum": checksum})
    record.write_result(
        directory,
        {
            **identity.described(),
            **summarise(attempts, RULES, wall_s=1.0),
            "tasks": per_task(attempts, RULES),
        },
    )
    return directory


def shown(renderable):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_same_settings_go_on_others_are_refused_by_name(tmp_path):
    begun = record.Identity(PINS, {"path": "m", "checksum": "x"})
    record.begin_or_go_on(tmp_path, begun)
    record.begin_or_go_on(tmp_path, begun)
    other = record.Identity(
        {**PINS, "rollout.sampling.temperature": 0.6}, {"path": "n", "checksum": "y"}
    )
    with pytest.raises(UserError) as refused:
        record.begin_or_go_on(tmp_path, other)
    assert "rollout.sampling.temperature: 1.0 and 0.6" in str(refused.value)
    assert "model.path: other weights (m and n)" in str(refused.value)
    assert "eval.repeats" not in str(refused.value)


def test_a_training_runs_directory_is_not_taken(tmp_path):
    (tmp_path / "trajectories.sqlite").touch()
    with pytest.raises(UserError, match="no evaluation"):
        record.begin_or_go_on(tmp_path, record.Identity(PINS, {"checksum": "x"}))


def test_weights_are_known_by_their_numbers_not_by_their_files(tmp_path):
    def save(directory, *files):
        (tmp_path / directory).mkdir()
        for number, tensors in enumerate(files):
            layout = [Layout(n, "F32", (2,), 8) for n in tensors]
            path = tmp_path / directory / f"model-{number}.safetensors"
            SafetensorsWriter(path, layout).write(
                (n, np.array(v, np.float32)) for n, v in tensors.items()
            )
        return record.weights_of(str(tmp_path / directory))["checksum"]

    together = save("a", {"w": [1, 2], "v": [3, 4]})
    assert together == save("b", {"v": [3, 4]}, {"w": [1, 2]})
    assert together != save("c", {"w": [3, 4], "v": [1, 2]})
    with pytest.raises(UserError, match="no safetensors"):
        record.weights_of(str(tmp_path))


def test_engine_seconds_of_several_sessions(tmp_path):
    assert record.engine_seconds(tmp_path, [5.0]) == 0.0
    for start in (100.0, 200.0, 300.0):
        record.note_session(tmp_path, start)
    assert record.engine_seconds(tmp_path, [110.0, 150.0, 320.0]) == 50.0 + 0.0 + 20.0


def test_a_result_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        record.read_result(tmp_path)
    record.begin_or_go_on(tmp_path, record.Identity(PINS, {"checksum": "x"}))
    with pytest.raises(UserError, match="not at its end"):
        record.read_result(tmp_path)
    (tmp_path / "eval.json").write_text("[1]")
    with pytest.raises(UserError, match="no result of"):
        record.read_result(tmp_path)


def test_a_comparison_pairs_the_tasks(tmp_path):
    a = write(tmp_path / "a", [(0, 0), (1, 0), (0, 0), (1, 1)])
    b = write(tmp_path / "b", [(1, 1), (1, 0), (1, 0), (1, 1)], checksum="bb" * 16)
    found = compare(a, b)
    assert [row.name for row in found.rows] == ["s", "s/d", "s/e"]
    total = found.whole
    assert total.name == "s"
    assert (total.mean_a, total.mean_b) == (0.375, 0.75)
    assert total.paired.difference == 0.375
    assert total.paired.p_value == 0.5  # two tasks differ, both up: 2 of 4 sign patterns
    text = shown(comparison_table(found))
    assert "+0.375" in text
    assert "bbbbbbbbbbbb" in text


def test_other_settings_are_refused_unless_it_was_said(tmp_path):
    a = write(tmp_path / "a", [(0, 1)])
    b = write(tmp_path / "b", [(1, 1)], pins={**PINS, "guard.judge": "m"})
    with pytest.raises(UserError, match=r'guard\.judge: \(absent\) and "m"'):
        compare(a, b)
    assert compare(a, b, despite=["guard"]).differing == ['guard.judge: (absent) and "m"']


def test_without_a_task_in_common(tmp_path):
    a, b = write(tmp_path / "a", [(0, 1)]), write(tmp_path / "b", [(1, 1)], suite="t")
    with pytest.raises(UserError, match="no task"):
        compare(a, b)


def test_the_table_of_a_result(tmp_path):
    result = record.read_result(write(tmp_path / "a", [(0, 1), (1, 1)]))
    text = shown(result_table(result))
    for word in ("pass@2", "pass^2", "0.750  0.250", result["pinned_hash"]):
        assert word in text


def test_compare_on_the_command_line(tmp_path, capsys):
    a = write(tmp_path / "a", [(0, 0), (1, 0)])
    b = write(tmp_path / "b", [(1, 1), (1, 0)])
    files = ["--json", str(tmp_path / "c.json"), "--plot", str(tmp_path / "c.png")]
    assert main(["eval", "compare", str(a), str(b), *files]) == 0
    assert "B - A" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())["rows"][0]["difference"] == 0.5
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", "compare", str(a)]) == 2
    assert main(["eval", "compare", str(a), str(tmp_path / "nowhere")]) == 2
    assert "holds no result" in capsys.readouterr().err


def test_inspect_shows_an_evaluation(tmp_path):
    directory = write(tmp_path / "a", [(0, 1), (1, 1)])
    TrajectoryStore(directory / "trajectories.sqlite").close()
    console = Console(width=200, record=True, file=io.StringIO())
    assert run_inspect(directory, console=console) == 0
    assert "0.750  0.250" in console.export_text()
