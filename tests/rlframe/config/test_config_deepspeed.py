"""Keys of one backend only: refused with what to set instead, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlframe.config.check import check_config
from rlframe.config.check_deepspeed import check_backend
from rlframe.config.compose import load_config
from rlframe.config.explain import explain
from rlframe.config.passthrough import SECTIONS, check_options
from rlframe.errors import UserError

P = "trainer.policy"
ZERO = f"{P}.deepspeed.zero_optimization"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([f"{P}.layout.tensor=2"], "set trainer.policy.layout.data"),
        ([f"{P}.layout.pipeline=2"], "trainer=megatron"),
        (["trainer.critic.layout.context=2"], "trainer.critic.deepspeed.zero_optimization.stage=3"),
        ([f"{P}.transformer={{hidden_dropout: 0.1}}"], "options of Megatron"),
        ([f"{P}.mtp.mode=joint"], "trainer=megatron"),
        (["trainer.share_prefixes=true"], "trainer=megatron"),
        ([f"{P}.optimizer={{adam_beta: 0.9}}"], "adam_beta1"),
        ([f"{P}.optimizer={{optimizer: muon}}"], "adam, sgd"),
        ([f"{ZERO}.stage=4"], "one of 0, 1, 2, 3"),
        ([f"{ZERO}.stage=0", "model.dtype=bfloat16"], "use 1, 2 or 3"),
        ([f"{ZERO}={{stage: 2, offload_param: {{device: cpu}}}}"], "needs stage 3"),
        ([f"{ZERO}={{stage: 3, offload_param: {{device: nvme}}}}"], "none or cpu"),
    ],
)
def test_what_deepspeed_does_not_do_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        check_backend(load_config(["experiment=smoke", "trainer=deepspeed", *overrides]))
    assert says.lower() in str(error.value).lower()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (f"{ZERO}.stage=1", "is for trainer=deepspeed"),
        (f"{P}.attention=eager", "is for trainer=deepspeed"),
        ("trainer.critic.gradient_checkpointing=true", "recompute_granularity"),
    ],
)
def test_what_megatron_would_not_read_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_backend(load_config(["experiment=smoke", override]))


def test_the_smoke_job_is_the_same_for_both_backends() -> None:
    check_backend(load_config(["experiment=smoke", "trainer=deepspeed"]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"zero_optimisation": {}}, "Did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stag": 2}}, "Did you mean 'stage'"),
        ({"zero_optimization": 2}, "dictionary"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "Did you mean 'device'"),
        ({"gradient_clipping": 1.0}, "trainer.policy.optimizer.clip_grad"),
        ({"train_batch_size": 8}, "can't be set"),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, "takes int"),
    ],
)
def test_deepspeeds_own_keys_are_checked_as_deep_as_they_go(given: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        check_options(f"{P}.deepspeed", given)
    assert says in str(error.value)


def test_what_deepspeed_knows_passes() -> None:
    check_options(
        f"{P}.deepspeed",
        {
            "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
            "bf16": {"check_grad_overflow": True},
            "wall_clock_breakdown": True,
            "communication_data_type": "fp32",
        },
    )
    for key in SECTIONS:
        with pytest.raises(UserError, match="no option"):
            check_options(key, {"no_such_option": 1})


def test_a_nested_option_is_explained() -> None:
    said = explain(f"{ZERO}.offload_optimizer.device", [])
    assert "cpu" in said
    assert "deepspeed" in said


def test_a_model_without_a_megatron_definition_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 99}')
    with pytest.raises(UserError, match="trainer=deepspeed trains any causal"):
        check_config(load_config(["experiment=smoke", f"model.path={tmp_path}"]))
