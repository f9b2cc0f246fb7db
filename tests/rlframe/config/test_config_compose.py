"""Composition: every file composes, every wrong override is one readable message."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.config import keys
from rlframe.config.compose import CONFIGS, load_config
from rlframe.config.saved import load_saved_config, save_config
from rlframe.config.schema import PpoConfig, RunConfig, SftConfig
from rlframe.errors import UserError

OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml"))]
KNOBS = 260
"""A ratchet: a new knob needs a reason, and this number."""


def test_every_knob_says_what_it_means():
    silent = [k.name for k in keys.all_keys().values() if not k.help]
    assert silent == []


def test_the_number_of_knobs_is_watched():
    assert len(keys.all_keys()) <= KNOBS


def test_every_group_has_options():
    assert {group for group, _ in OPTIONS} == set(keys.GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group, option):
    config = load_config([f"{group}={option}"])
    assert isinstance(config, RunConfig)


def test_the_group_chooses_the_algorithms_type():
    assert isinstance(load_config([]).algorithm, PpoConfig)
    assert isinstance(load_config(["algorithm=sft"]).algorithm, SftConfig)
    assert isinstance(load_config(["experiment=sft_tiny"]).algorithm, SftConfig)


def test_overrides_win_over_the_experiment_and_one_seed_moves_all():
    config = load_config(["experiment=smoke", "steps=7", "seed=3", "model.init_seed=9"])
    assert (config.steps, config.seed, config.env.seed, config.model.init_seed) == (7, 3, 3, 9)


def test_what_is_somebody_elses_passes_through():
    config = load_config(
        [
            "rollout.engine_args.tp_size=2",
            "trainer.policy.optimizer={adam_beta2: 0.9}",
            "env.args={path: x}",
        ]
    )
    assert config.rollout.engine_args == {"tp_size": 2}
    assert config.trainer.policy.optimizer == {"adam_beta2": 0.9}
    assert config.env.args == {"path": "x"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("engines=2", "Did you mean 'rollout.engines' or 'teachers.engines'?"),
        ("rollout.engine=2", "Did you mean 'rollout.engines'?"),
        ("algorithm.clip_hig=1", "algorithm.clip_high"),
        ("experiment=smok", "Did you mean 'smoke'?"),
        ("rollout.engines=two", "rollout.engines"),
        ("rollout.engines=0", "at least 1"),
        ("algorithm.gamma=1.5", "from 0 to 1"),
        ("cluster.device=gpu", "auto, cpu, cuda"),
        ("steps=1,2", "not a sweep"),
        ("nonsense", "key=value"),
        ("algorithm.name=sft", "algorithm="),
        ("trainer.policy.layout=3", "trainer.policy.layout"),
    ],
)
def test_a_wrong_override_says_what_is_right(override, says):
    with pytest.raises(UserError) as error:
        load_config([override])
    assert says in str(error.value)
    assert override.split("=")[0] in str(error.value)


def test_a_saved_configuration_is_the_same_again(tmp_path):
    for overrides in (["experiment=smoke", "seed=4"], ["experiment=sft_tiny"]):
        config = load_config(overrides)
        save_config(config, tmp_path / "config.yaml")
        again = load_saved_config(tmp_path / "config.yaml")
        assert dataclasses.asdict(again) == dataclasses.asdict(config)


def test_users_own_groups_are_found(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsteps: 11\n")
    assert load_config(["experiment=mine"], config_dir=str(tmp_path)).steps == 11
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nstepps: 11\n")
    with pytest.raises(UserError, match="steps"):
        load_config(["experiment=mine"], config_dir=str(tmp_path))


names = st.one_of(
    st.sampled_from(sorted(keys.all_keys())), st.sampled_from(keys.GROUPS), st.text(max_size=12)
)
values = st.one_of(
    st.integers(-3, 300).map(str),
    st.floats(allow_nan=True).map(str),
    st.sampled_from(
        ["true", "null", "smoke", "[1,2]", "{a: 1}", "", "${seed}", "${x}", "a b", "'"]
    ),
    st.text(max_size=8),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, values).map("=".join), max_size=3))
def test_any_overrides_give_a_configuration_or_a_readable_error(overrides):
    try:
        assert isinstance(load_config(overrides), RunConfig)
    except UserError as error:
        shown = str(error)
        if not shown.strip() or "Traceback" in shown:
            raise AssertionError(f"{overrides}: {shown!r}") from error
