"""Checks over several knobs, and of options that pass through to the installed libraries."""

import json

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


def critic_checkpoint(path, **described):
    """A directory that looks like a critic's checkpoint, as far as the checks look."""
    path.mkdir()
    shape = {
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 300,
        "architectures": ["Qwen3ForSequenceClassification"], **described,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(shape))
    (path / "model.safetensors").write_bytes(b"")
    tokens = {"a": 0, "b": 1}
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    return path


BINS = {"count": 21, "lowest": -1.0, "highest": 2.0, "sigma": 0.75}
HEAD = [f"algorithm.value_{k}={v}" for k, v in (("bins", 21), ("low", -1), ("high", 2))]


@pytest.mark.parametrize(
    ("described", "overrides", "keys"),
    [
        ({"vocab_size": 301}, [], ["vocab_size=301", "300"]),
        ({"num_attention_heads": 3}, ["trainer.critic.layout.tensor=2"], ["num_attention_heads=3"]),
        ({"max_position_embeddings": 64}, [], ["max_position_embeddings=64", "max_context_tokens"]),
        ({"hidden_size": "wide"}, [], ["trainer.critic.path", "hidden_size='wide'"]),
        ({}, ["algorithm.value_loss=hl_gauss"], ["one number", "101 bins (hl_gauss) from -0.5"]),
        ({"value_bins": BINS}, [], ["21 bins (hl_gauss) from -1.0 to 2.0", "one number"]),
        ({"value_bins": BINS}, ["algorithm.value_loss=two_hot", *HEAD], ["21 points (two_hot)"]),
        ({"value_bins": BINS}, ["algorithm.value_loss=hl_gauss", *HEAD[1:]], ["101 bins"]),
        ({}, ["algorithm.value_low=2"], ["algorithm.value_low=2", "algorithm.value_high=1.5"]),
    ],
)
def test_a_critic_that_does_not_fit_is_refused_by_name(tmp_path, described, overrides, keys):
    policy = critic_checkpoint(tmp_path / "policy", hidden_size=64)
    critic = critic_checkpoint(tmp_path / "critic", **described)
    fits = [f"model.path={policy}", *TINY[1:], "rollout.sampling.max_new_tokens=16"]
    with pytest.raises(UserError) as error:
        check_config(load_config([*fits, f"trainer.critic.path={critic}", *overrides]))
    for key in keys:
        assert key in str(error.value)


def test_a_critic_of_another_size_with_the_same_head_and_vocabulary_is_fine(tmp_path):
    policy = critic_checkpoint(tmp_path / "policy", hidden_size=64)
    critic = critic_checkpoint(tmp_path / "critic", value_bins=BINS)
    fits = [f"model.path={policy}", *TINY[1:], "rollout.sampling.max_new_tokens=16"]
    loss = ["algorithm.value_loss=hl_gauss", "algorithm.value_sigma=0.5", *HEAD]
    given = [*fits, f"trainer.critic.path={critic}", *loss]
    check_config(load_config(given))
    (critic / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}))
    with pytest.raises(UserError, match=r"trainer.critic.path: token 'a' is 1 .* and 0 in"):
        check_config(load_config(given))


def a_source(path, *, vocab_size=300, tokens=None):
    """A run directory with one stored trajectory, as far as the checks look."""
    from contextlib import closing

    import numpy as np

    from rlframe.store import TrajectoryStore
    from rlframe.types import Reward, Status, Trace, Trajectory

    (path / "model").mkdir(parents=True)
    (path / "model" / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    vocab = tokens or {"a": 0, "b": 1}
    (path / "model" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    mask = np.array([False, True])
    trace = Trace(
        np.array([0, 1], np.int32), mask, np.zeros(2, np.float32), np.array([-1, 0], np.int32)
    )
    with closing(TrajectoryStore(path / "trajectories.sqlite")) as store:
        store.put([Trajectory("a", "a", "d", Status.COMPLETED, (trace,), (Reward(1.0),))])
    return path


@pytest.mark.parametrize(
    ("source", "overrides", "keys"),
    [
        ({"vocab_size": 299}, [], ["algorithm.source_runs", "vocabulary of 299", "300"]),
        ({"tokens": {"a": 0, "c": 1}}, [], ["algorithm.source_runs", "token 'b' is 1"]),
        ({}, ["model.tokenizer=build"], ["model.tokenizer=build"]),
        ({}, ["algorithm.held_out_share=0.9"], ["algorithm.held_out_share=0.9"]),
        ({}, ["trainer.critic.layout.data=2"], ["trainer.critic.layout.data=2", "1 trajectories"]),
        ({}, ["trainer.max_tokens_per_micro_batch=1"], ["none of the 1", "1 tokens of a micro"]),
        ({}, ["algorithm.source_runs=nowhere"], ["algorithm.source_runs=nowhere", "[a,b]"]),
        ({}, ["algorithm.source_runs=[nowhere]"], ["no run directory 'nowhere'"]),
    ],
)
def test_value_pretraining_from_sources_that_do_not_fit_is_refused(
    tmp_path, source, overrides, keys
):
    policy = critic_checkpoint(tmp_path / "policy", architectures=["Qwen3ForCausalLM"])
    run = a_source(tmp_path / "run", **source)
    given = [
        "experiment=value_pretrain",
        f"model.path={policy}",
        f"algorithm.source_runs=[{run}]",
        "algorithm.held_out_share=0",
    ]
    check_config(load_config(given)) if not source else None
    with pytest.raises(UserError) as error:
        check_config(load_config([*given, *overrides]))
    for key in keys:
        assert key in str(error.value)
