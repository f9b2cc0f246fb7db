"""`rlframe eval`'s configuration: suites, efforts, presets, and mistakes in them."""

import pytest

from rlframe.cli.main import main
from rlframe.config.compose import evaluation_name, load_config
from rlframe.config.evaluation import checkpoint_of, union_of, with_effort
from rlframe.config.search import EVALUATION_ROOT
from rlframe.errors import UserError


def load(*overrides):
    return load_config(overrides, root=EVALUATION_ROOT)


def test_a_preset_pins_what_it_is_about():
    rollout = load("eval=terminal_bench").rollout
    assert (rollout.mode, rollout.black_box.program) == ("black_box", "terminus_2")
    assert (rollout.sampling.temperature, rollout.sampling.top_p) == (1.0, 1.0)
    assert (rollout.black_box.max_calls, rollout.attempt_timeout_s) == (500, 4 * 3600)
    assert rollout.sampling.max_new_tokens == 48 * 1024


def test_a_preset_is_stronger_than_an_experiment_and_has_a_name_of_its_own():
    config = load("experiment=smoke", "eval=smoke", "model.path=runs/smoke_0/hf")
    assert config.name == "eval_smoke_smoke_0"
    assert config.run_dir == "runs/eval_smoke_smoke_0"


def test_names():
    assert evaluation_name("smoke", "/m/Qwen3-0.6B", "max") == "eval_smoke_Qwen3-0.6B_max"
    assert evaluation_name("smoke", "", "") == "eval_smoke_random"


def test_suites_are_options_of_env_or_spelled_out():
    config = load(
        "eval.suites={puzzles: smoke_puzzles, mine: {name: dataset, args: {path: x}}}", "seed=5"
    )
    parts = union_of(config).args["parts"]
    assert parts["puzzles"]["name"] == "reasoning_gym"
    assert parts["puzzles"]["args"]["max_turns"] == 2
    assert parts["mine"] == {"name": "dataset", "args": {"path": "x"}, "held_out": 128, "seed": 5}


def test_without_suites_it_is_env():
    env = union_of(load("env=smoke_puzzles", "env.held_out=7"))
    assert list(env.args["parts"]) == ["reasoning_gym"]
    assert env.args["parts"]["reasoning_gym"]["held_out"] == 7


def test_an_effort_is_template_variables_and_budgets():
    config = load(
        "eval.effort=max",
        "eval.efforts.max={template_args: {enable_thinking: true}, max_new_tokens: 999, max_turns: 9}",
        "rollout.template_args={clear_thinking: false}",
    )
    rollout = with_effort(config)
    assert rollout.template_args == {
        "clear_thinking": False,
        "reasoning_effort": "max",
        "enable_thinking": True,
    }
    assert (rollout.sampling.max_new_tokens, rollout.max_turns) == (999, 9)
    assert config.rollout.sampling.max_new_tokens == 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.effort=hihg"], "Did you mean 'high'"),
        (["eval.effort=high", "eval.efforts.high.max_token=3"], "max_token: there is no such key"),
        (["eval.effort=high", "eval.efforts.high.max_turns=a"], "must be a number"),
        (["eval.suites={a: 3}"], r"eval\.suites\.a=3: must be an option"),
        (["eval.suites={a: smoke_puzles}"], "Did you mean 'smoke_puzzles'"),
        (["eval.suites={a: {name: dataset, arg: {}}}"], r"a\.arg: .*Did you mean 'args'"),
    ],
)
def test_mistakes_are_said(overrides, message):
    config = load(*overrides)
    with pytest.raises(UserError, match=message):
        union_of(config), with_effort(config)


def test_a_run_stands_for_the_model_that_it_ended_with(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not at its end"):
        checkpoint_of(str(tmp_path))
    (tmp_path / "hf" / "config.json").touch()
    assert checkpoint_of(str(tmp_path)) == str(tmp_path / "hf")
    assert checkpoint_of(str(tmp_path / "hf")) == str(tmp_path / "hf")


def test_a_training_run_takes_no_preset(capsys):
    assert main(["train", "experiment=smoke", "eval=smoke"]) == 2
    assert "presets are for `rlframe eval`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "eval=smok"], "Did you mean 'smoke'"),
        (["eval", "eval=smoke"], "model.path is empty"),
        (["eval", "eval=smoke", "--despite", "x"], "--despite is for"),
        (["eval", "."], "Did you mean model.path=.?"),
        (["eval", "eval=smoke", "eval.repeats=0"], "at least 1"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
