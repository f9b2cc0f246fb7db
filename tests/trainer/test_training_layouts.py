"""The same mini-batch gives the same loss, gradient norm and weights on every layout and every split.

All quantities are float32 sums in another order, so they may differ by float32 round-off and no more.
Adam's epsilon is far above that round-off, or the step of a parameter whose gradient is zero but for
it would have a random sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlframe.config.schema import LayoutConfig
from rlframe.types import BatchPlan
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import TINY
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.train_rows import OBJECTIVES, plan_of, rank_spec, train_rows

WHOLE = plan_of(((0, 1, 2, 3, 4),))
SPLIT = plan_of(((4, 0), (2,), (3, 1), ()))
HALVES = plan_of(((4, 2), (0,)), ((1, 3), ()))

FAST: dict[str, tuple[LayoutConfig, BatchPlan]] = {
    "micro_batches": (LayoutConfig(), SPLIT),
    "data": (LayoutConfig(data=2), HALVES),
    "tensor": (LayoutConfig(tensor=2), SPLIT),
    "pipeline": (LayoutConfig(pipeline=2), SPLIT),
}
SLOW: dict[str, tuple[LayoutConfig, BatchPlan]] = {
    "sequence": (LayoutConfig(tensor=2, sequence_parallel=True), SPLIT),
    "data_tensor": (LayoutConfig(data=2, tensor=2), HALVES),
    "data_pipeline": (LayoutConfig(data=2, pipeline=2), HALVES),
    "tensor_pipeline": (LayoutConfig(tensor=2, pipeline=2, sequence_parallel=True), SPLIT),
    "pipeline_4": (LayoutConfig(pipeline=4), SPLIT),
    "all": (LayoutConfig(data=2, tensor=2, pipeline=2, sequence_parallel=True), HALVES),
    "plain_optimizer": (LayoutConfig(data=2), HALVES),
}
GLM: dict[str, tuple[LayoutConfig, BatchPlan]] = {
    "micro_batches": (LayoutConfig(), SPLIT),
    "sequence": (LayoutConfig(tensor=2, sequence_parallel=True), SPLIT),
    "context_expert": (LayoutConfig(context=2, expert=2), SPLIT),
    "data_expert": (LayoutConfig(data=2, expert=2), HALVES),
    "pipeline": (LayoutConfig(pipeline=2, pipeline_layers="5+4"), SPLIT),
}
GLM_SLOW: dict[str, tuple[LayoutConfig, BatchPlan]] = {
    "virtual_pipeline": (LayoutConfig(pipeline=3, virtual_pipeline=2), SPLIT),
    "data_context_tensor": (
        LayoutConfig(data=2, context=2, tensor=2, sequence_parallel=True, expert=4),
        HALVES,
    ),
    "plain_optimizer": (LayoutConfig(tensor=2, sequence_parallel=True, expert=2), SPLIT),
}


def learn(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    plan: BatchPlan,
    ddp: Any,
    hf_config: dict[str, Any],
) -> dict[str, Any]:
    """Forward and two updates of each objective; what the answering rank sees, and the weights."""
    from tests.trainer.training_ranks import join_ranks, own_shard, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    seen: dict[str, Any] = {}
    for kind in OBJECTIVES:
        spec = rank_spec(kind, rank=rank, layout=layout, ddp=ddp, hf_config=hf_config)
        training = Training(spec, "cpu")
        rows = train_rows()
        is_critic = kind.startswith("critic")
        column = training.values if is_critic else training.logprobs
        shard = own_shard(training, rows, plan, () if is_critic else ("loss_mask",))
        forward = column(shard)
        steps = [update(training, rows, plan, step=step) for step in range(2)]
        weights = parameters(training)
        if steps[0] is not None:
            seen[kind] = (forward, steps)
        if rank == 0:
            seen[f"{kind} weights"] = weights
    return seen


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return on_one_rank(TINY)


@pytest.fixture(scope="module")
def glm_reference() -> dict[str, Any]:
    return on_one_rank(TINY_GLM)


def on_one_rank(hf_config: dict[str, Any]) -> dict[str, Any]:
    (seen,) = run_ranks(learn, 1, layout=LayoutConfig(), plan=WHOLE, ddp={}, hf_config=hf_config)
    return seen  # type: ignore[no-any-return]


def check_layout(
    reference: dict[str, Any],
    layout: LayoutConfig,
    plan: BatchPlan,
    ddp: Any,
    hf_config: dict[str, Any] = TINY,
) -> None:
    from trainer.ranks.shard import join

    ranks = run_ranks(
        learn, layout.world_size, layout=layout, plan=plan, ddp=ddp, hf_config=hf_config
    )
    rows = train_rows()
    for kind in OBJECTIVES:
        answers = [seen[kind] for seen in ranks if kind in seen]
        answers = answers[:: layout.tensor * layout.context]  # one a data-parallel rank
        assert len(answers) == layout.data
        joined = join([forward for forward, _ in answers], rows, plan)
        expected_forward, expected_steps = reference[kind]
        np.testing.assert_allclose(
            np.concatenate(joined),
            np.concatenate(join([expected_forward], rows, WHOLE)),
            rtol=0,
            atol=1e-5,
        )
        for _, steps in answers:
            for step, expected in zip(steps, expected_steps, strict=True):
                assert step == pytest.approx(expected, rel=2e-5, abs=1e-6), kind
        for name, expected in reference[f"{kind} weights"].items():
            np.testing.assert_allclose(
                ranks[0][f"{kind} weights"][name], expected, rtol=0, atol=5e-6, err_msg=name
            )


@pytest.mark.parametrize("name", FAST)
def test_layout(reference: dict[str, Any], name: str) -> None:
    layout, plan = FAST[name]
    check_layout(reference, layout, plan, ddp={})


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_layouts(reference: dict[str, Any], name: str) -> None:
    layout, plan = SLOW[name]
    ddp = {"use_distributed_optimizer": False} if name == "plain_optimizer" else {}
    check_layout(reference, layout, plan, ddp)


@pytest.mark.parametrize("name", GLM)
def test_glm_layout(glm_reference: dict[str, Any], name: str) -> None:
    layout, plan = GLM[name]
    check_layout(glm_reference, layout, plan, {}, TINY_GLM)


@pytest.mark.slow
@pytest.mark.parametrize("name", GLM_SLOW)
def test_more_glm_layouts(glm_reference: dict[str, Any], name: str) -> None:
    layout, plan = GLM_SLOW[name]
    ddp = {"use_distributed_optimizer": False} if name == "plain_optimizer" else {}
    check_layout(glm_reference, layout, plan, ddp, TINY_GLM)


@pytest.mark.parametrize("name", ["reference", "glm_reference"])
def test_the_reference_learns(request: pytest.FixtureRequest, name: str) -> None:
    """Guards the tests above: what they compare moves, and is not zero."""
    reference = request.getfixturevalue(name)
    for kind in OBJECTIVES:
        forward, (first, second) = reference[kind]
        assert np.abs(forward).max() > 0.01
        assert first["grad_norm"] > 0.01
        assert second["loss"] < first["loss"]
        assert first["skipped"] == 0.0
