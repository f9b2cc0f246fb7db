"""Checks over several knobs, and of options that pass through to the installed libraries."""

import pytest

from rlframe.config.check import check_config
from rlframe.config.compose import load_config
from rlframe.config.explain import explain
from rlframe.config.passthrough import PASSTHROUGH, check_options
from rlframe.errors import UserError

TINY = ("model=tiny_qwen3", "env=smoke_puzzles", "rollout.max_context_tokens=512")


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["trainer.policy.layout.tensor=3"], ["trainer.policy.layout.tensor", "num_"]),
        (["trainer.critic.layout.pipeline=3"], ["trainer.critic.layout.pipeline"]),
        (["trainer.policy.layout.sequence_parallel=true"], ["sequence_parallel"]),
        (["trainer.policy.layout.expert=2"], ["trainer.policy.layout.expert", "glm_moe_dsa"]),
        (
            ["trainer.policy.layout.context=2", "trainer.max_tokens_per_micro_batch=255"],
            ["rollout.max_context_tokens=512", "508 tokens", "multiples of 4"],
        ),
        (["trainer.critic.layout.pipeline_layers=1+1"], ["pipeline_layers", "glm_moe_dsa"]),
        (["rollout.max_context_tokens=9000"], ["rollout.max_context_tokens"]),
        (["rollout.sampling.max_new_tokens=512"], ["max_new_tokens", "max_context_tokens"]),
        (["rollout.sampling.temperature=0"], ["rollout.sampling.temperature"]),
        (["rollout.sampling.top_p=0.9"], ["top_p"]),
        (
            ["algorithm.mini_batches=999"],
            ["algorithm.mini_batches", "algorithm.batch_trajectories"],
        ),
        (["algorithm.critic_warmup_steps=9999"], ["algorithm.critic_warmup_steps", "steps"]),
        (["sync=tensor", "sync.directory=/x"], ["sync.directory", "sync.transport"]),
        (["rollout.engine_args.tp_sise=2"], ["tp_sise", "tp_size"]),
        (["rollout.engine_args.port=1"], ["port"]),
        (["trainer.policy.transformer.num_layers=3"], ["num_layers", "num_hidden_layers"]),
        (["trainer.policy.optimizer.weight_decai=0"], ["weight_decai", "weight_decay"]),
        (["trainer.critic.ddp.overlap_grad_reduse=true"], ["overlap_grad_reduce"]),
        (["rollout.router_args.polcy=random"], ["polcy", "policy"]),
        (["cluster.runtime_env.envvars={}"], ["envvars"]),
        (["model.path=nowhere"], ["model.path", "nowhere"]),
    ],
)
def test_what_can_not_work_is_refused_by_name(overrides, keys):
    with pytest.raises(UserError) as error:
        check_config(load_config([*TINY, "rollout.sampling.max_new_tokens=16", *overrides]))
    for key in keys:
        assert key in str(error.value)


GLM = (
    "model=glm_5_2",
    "model.tokenizer=build",
    "env=smoke_puzzles",
    "rollout.max_context_tokens=512",
    "rollout.sampling.max_new_tokens=16",
)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["layout.tensor=3"], ["layout.tensor=3", "num_attention_heads=64", "1, 2, 4"]),
        (["layout.tensor=8"], ["layout.sequence_parallel=true", "layout.expert=8"]),
        (["layout.expert=16"], ["layout.expert=16", "does not divide the 1 ranks"]),
        (["layout.pipeline=80"], ["80 parts of 78 layers"]),
        (["layout.pipeline=2", "layout.virtual_pipeline=2"], ["pipeline of 3 or more"]),
        (["layout.pipeline=2", "layout.pipeline_layers=40+40"], ["=40+40", "38+40"]),
    ],
)
def test_layouts_that_cannot_hold_glm_are_refused_at_the_start(overrides, keys):
    given = [f"trainer.policy.{override}" for override in overrides]
    with pytest.raises(UserError) as error:
        check_config(load_config([*GLM, *given]))
    for key in keys:
        assert key in str(error.value)


def test_glms_stages_may_be_uneven():
    given = ["pipeline=8", "context=2", "data=4", "tensor=8", "sequence_parallel=true", "expert=64"]
    check_config(load_config([*GLM, *(f"trainer.policy.layout.{sizes}" for sizes in given)]))


def test_the_tiny_configurations_are_fine():
    check_config(load_config(["experiment=sft_tiny"]))
    check_config(load_config([*TINY, "rollout.sampling.max_new_tokens=16"]))


@pytest.mark.parametrize("key", sorted(PASSTHROUGH))
def test_each_librarys_options_are_known(key):
    with pytest.raises(UserError, match="no_such_option"):
        check_options(key, {"no_such_option": 1})


def test_explain_says_where_what_and_which():
    text = explain("trainer.policy.lr", ["experiment=smoke"])
    assert "configs/experiment/smoke.yaml" in text
    assert "learning rate" in text
    assert "trainer.policy.lr=3" in explain("trainer.policy.lr", ["trainer.policy.lr=3"])
    option = explain("rollout.engine_args.tp_size", [])
    assert "sglang" in option
    assert "int" in option
    assert "trainer.critic.lr" in explain("trainer.critic", [])
    with pytest.raises(UserError, match="clip_high"):
        explain("algorithm.clip_hig", [])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer.policy.mtp.mode=detached", "trainer.policy.mtp.mode"),
        ("trainer.policy.indexer.mode=sparse", "trainer.policy.indexer.mode"),
        (
            "trainer.critic.transformer.moe_router_bias_update_rate=0.001",
            "trainer.critic.transformer.moe_router_bias_update_rate",
        ),
    ],
)
def test_losses_over_whole_rows_refuse_shared_prefixes(override, key):
    with pytest.raises(UserError) as error:
        check_config(load_config([*GLM, "trainer.share_prefixes=true", override]))
    for named in ("trainer.share_prefixes=false", key):
        assert named in str(error.value)
