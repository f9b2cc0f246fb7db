"""`rlframe plan`: what a person reads, and what a program does."""

import json

import pytest

from rlframe.cli.main import main
from rlframe.cli.plan import read_contexts


def test_the_figures_of_glm_5_2_are_shown(capsys):
    assert main(["plan", "model=glm_5_2"]) == 0
    shown = capsys.readouterr().out
    for figure in ("753.33 B", "40.30 B", "21 of 78 layers", "2.88x", "2.74x", "92,628"):
        assert figure in shown
    assert "core attention left out" in shown


def test_a_dense_model_has_no_indexer(capsys):
    assert main(["plan", "model=tiny_qwen3"]) == 0
    shown = capsys.readouterr().out
    assert "keys and values" in shown
    assert "indexer" not in shown


def test_json_and_a_picture(tmp_path, capsys):
    made, drawn = tmp_path / "plan.json", tmp_path / "plan.png"
    given = ["--contexts", "4K,1M", "--json", str(made), "--plot", str(drawn)]
    assert main(["plan", "model=glm_5_2", *given]) == 0
    plan = json.loads(made.read_text())
    assert [at["context"] for at in plan["by_context"]] == [4096, 1 << 20]
    assert plan["active"] == 40_297_758_720
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--contexts", "4k,many"], "'many' is no number of tokens"),
        (["--contexts", "2M"], "max_position_embeddings=1,048,576"),
        (["trainer.policy.layout.tensor=3"], "does not divide"),
    ],
)
def test_mistakes_are_told(given, said, capsys):
    assert main(["plan", "model=glm_5_2", *given]) == 2
    assert said in capsys.readouterr().err


def test_units_of_contexts():
    assert read_contexts("5000,4K,1m") == (5000, 4096, 1 << 20)
