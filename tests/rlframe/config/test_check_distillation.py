"""Distillation's knobs that do not go together are refused with the key and a way out; the verb is for opd alone."""

import pytest

from rlframe.cli.main import main
from rlframe.cluster.demand import has_critic
from rlframe.config.check_distillation import (
    MOST_CANDIDATES,
    candidates_of,
    check_distillation,
)
from rlframe.config.compose import load_config
from rlframe.config.schema import OpdConfig, PpoConfig
from rlframe.errors import UserError


def config(*overrides):
    return load_config(["algorithm=opd", "teachers.manifest=teachers.yaml", *overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teachers.manifest=''"], "teachers.manifest is empty"),
        (["algorithm.objective=jsd", "algorithm.distill_in=reward"], "sums sampled log ratios"),
        (["algorithm.top_k=8"], "algorithm.top_k is for objective="),
        (["algorithm.distill_temperature=2"], "objective=sampled takes the policy as it samples"),
        (
            ["algorithm.objective=jsd", "algorithm.top_k=8", "algorithm.distill_temperature=2"],
            "use tail=renormalise",
        ),
        (
            ["algorithm.objective=jsd", "algorithm.top_k=8", "algorithm.teachers_on=ranks"],
            "has the whole vocabulary",
        ),
        (["algorithm.objective=jsd", "algorithm.top_k=5000"], "at most 4096"),
        (["algorithm.objective=jsd", "algorithm.distill_temperature=0"], "must be above 0"),
        (["algorithm.domain_weights={gcd: -1}"], "domain_weights.gcd=-1"),
        (["algorithm.curriculum={from_5: {gcd: 1}}"], "begins at step 5"),
        (["rollout.partial=true", "algorithm.max_staleness=1"], "algorithm.compare=false"),
    ],
)
def test_what_does_not_go_together(overrides, said):
    with pytest.raises(UserError, match=said):
        check_distillation(config(*overrides))


def test_what_does():
    for overrides in (
        [],
        ["algorithm.task_reward=true", "algorithm.distill_in=reward"],
        ["algorithm.objective=jsd", "algorithm.top_k=64"],
        [
            "algorithm.objective=forward_kl",
            "algorithm.top_k=64",
            "algorithm.tail=renormalise",
            "algorithm.distill_temperature=2",
        ],
        ["algorithm.objective=reverse_kl", "algorithm.teachers_on=ranks"],
        ["algorithm.curriculum={from_0: {gcd: 1}, from_100: {gcd: 1, aiw: 3}}"],
    ):
        check_distillation(config(*overrides))
    check_distillation(load_config(["algorithm=ppo"]))


def test_a_vocabulary_that_engines_can_send_whole_and_one_that_they_can_not():
    exact = OpdConfig(objective="reverse_kl")
    assert candidates_of(exact, vocab_size=1000) == 1000
    assert candidates_of(OpdConfig(), vocab_size=151_936) == 0
    assert candidates_of(OpdConfig(objective="jsd", top_k=64), vocab_size=50) == 50
    assert candidates_of(OpdConfig(objective="jsd", teachers_on="ranks"), vocab_size=10**6) == 0
    with pytest.raises(UserError, match=r"algorithm.top_k=64 takes the likeliest"):
        candidates_of(exact, vocab_size=MOST_CANDIDATES + 1)


def test_a_critic_only_where_there_is_something_to_predict():
    assert not has_critic(OpdConfig())
    assert has_critic(OpdConfig(task_reward=True))
    assert has_critic(OpdConfig(distill_in="reward"))
    assert not has_critic(OpdConfig(objective="jsd", distill_in="reward"))
    assert not has_critic(OpdConfig(task_reward=True, critic=False))
    assert not has_critic(OpdConfig(task_reward=True, estimator="grpo"))
    assert has_critic(PpoConfig())


def test_the_verb_is_for_distillation(capsys):
    assert main(["distill", "experiment=smoke", "--dry-run"]) == 2
    assert "this configuration has algorithm=ppo: add algorithm=opd" in capsys.readouterr().err
    assert main(["distill", "model=tiny_qwen3", "rollout.max_context_tokens=512", "--dry-run"]) == 2
    assert "teachers.manifest is empty" in capsys.readouterr().err
