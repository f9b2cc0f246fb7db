"""Indexers in training: what learns in each mode, and that no layout, split or recompute changes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from rlframe.config.schema import IndexerConfig, LayoutConfig, MtpConfig
from rlframe.errors import UserError
from rlframe.types import BatchPlan
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import TINY
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.train_rows import plan_of, rank_spec, train_rows
from trainer.ranks.spec import ModelSource

WHOLE = plan_of(((0, 1, 2, 3, 4),))
SPLIT = plan_of(((4, 0), (2,), (3, 1), ()))
HALVES = plan_of(((4, 2), (0,)), ((1, 3), ()))
ALIGNED = LayoutConfig(pipeline=2, pipeline_layers="6+3")
ACROSS = LayoutConfig(pipeline=2, pipeline_layers="5+4")
RECOMPUTE = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
KINDS = {
    "own": IndexerConfig("sparse", "own", 1.0),
    "served": IndexerConfig("sparse", "served", 1.0),
    "warm_up": IndexerConfig("dense_warmup", "served", 1.0),
}
LAYOUTS: dict[str, tuple[LayoutConfig, BatchPlan, dict[str, Any]]] = {
    "micro_batches": (LayoutConfig(), SPLIT, {}),
    "recompute": (LayoutConfig(), SPLIT, RECOMPUTE),
    "pipeline": (ALIGNED, SPLIT, RECOMPUTE),
}
MORE_LAYOUTS: dict[str, tuple[LayoutConfig, BatchPlan, dict[str, Any]]] = {
    "data": (LayoutConfig(data=2), HALVES, {}),
    "sequence": (LayoutConfig(tensor=2, sequence_parallel=True), SPLIT, {}),
    "context": (LayoutConfig(context=2), SPLIT, {}),
}


def spec_of(
    rank: int, indexer: IndexerConfig, layout: LayoutConfig, hf_config: Any, **config: Any
) -> Any:
    optimizer = {"adam_eps": 1e-3, "clip_grad": 0.0, "weight_decay": 0.0}
    spec = rank_spec(
        "sft", rank=rank, layout=layout, indexer=indexer, optimizer=optimizer, **config
    )
    return dataclasses.replace(spec, model=ModelSource(hf_config, "", "float32", 3))


def learn(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    plan: BatchPlan,
    transformer: Any,
    kinds: dict[str, IndexerConfig],
    steps: int,
) -> dict[str, Any]:
    """Per kind: the statistics of every update where there are any, and the weights before and after."""
    from tests.trainer.training_ranks import join_ranks, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    seen = {}
    for name, indexer in kinds.items():
        spec = spec_of(rank, indexer, layout, TINY_GLM, transformer=transformer)
        training = Training(spec, "cpu")
        before = parameters(training)
        rows = train_rows()
        statistics = [update(training, rows, plan, step=step) for step in range(steps)]
        seen[name] = (statistics, before, parameters(training))
    return seen


def alone(kinds: dict[str, IndexerConfig], steps: int = 2) -> dict[str, Any]:
    (seen,) = run_ranks(
        learn, 1, layout=LayoutConfig(), plan=WHOLE, transformer={}, kinds=kinds, steps=steps
    )
    return seen  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return alone(KINDS)


def check(reference: dict[str, Any], case: tuple[LayoutConfig, BatchPlan, dict[str, Any]]) -> None:
    layout, plan, transformer = case
    ranks = run_ranks(
        learn,
        layout.world_size,
        layout=layout,
        plan=plan,
        transformer=transformer,
        kinds=KINDS,
        steps=2,
    )
    for kind in KINDS:
        expected, _, weights = reference[kind]
        answered = [seen[kind][0] for seen in ranks if seen[kind][0][0] is not None]
        assert answered
        for statistics in answered:
            for step, wanted in zip(statistics, expected, strict=True):
                assert step == pytest.approx(wanted, rel=2e-5, abs=1e-6), kind
        for name, wanted in weights.items():
            got = ranks[0][kind][2][name]
            np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-6, err_msg=f"{kind} {name}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(reference: dict[str, Any], name: str) -> None:
    check(reference, LAYOUTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_LAYOUTS)
def test_more_layouts(reference: dict[str, Any], name: str) -> None:
    check(reference, MORE_LAYOUTS[name])


def moved(seen: tuple[Any, Any, Any]) -> set[str]:
    _, before, after = seen
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_what_learns_in_each_mode(reference: dict[str, Any]) -> None:
    others = alone({"frozen": IndexerConfig(), "free": IndexerConfig("sparse", "own", 0.0)})
    names = set(reference["own"][1])
    indexers = {name for name in names if ".indexer." in name}
    assert len(indexers) == 4 * 5
    trunk = {name for name in names - indexers if "e_score_correction_bias" not in name}
    assert moved(reference["warm_up"]) == indexers
    assert moved(others["frozen"]) == moved(others["free"]) == trunk
    for kind in ("own", "served"):
        assert moved(reference[kind]) == names - (names - indexers - trunk)


def test_the_loss_of_the_indexers_does_not_touch_the_model(reference: dict[str, Any]) -> None:
    """After one update, where the choices were still the same; but for round-off of nothing at all."""
    first = alone({"on": KINDS["served"], "off": IndexerConfig("sparse", "own", 0.0)}, steps=1)
    for name, value in first["on"][2].items():
        if ".indexer." not in name:
            np.testing.assert_array_equal(value, first["off"][2][name], err_msg=name)


def test_the_divergence_falls_and_differs_by_target(reference: dict[str, Any]) -> None:
    many = alone({"warm_up": KINDS["warm_up"]}, steps=8)["warm_up"][0]
    assert many[-1]["indexer_kl"] < 0.9 * many[0]["indexer_kl"]
    own, served = (reference[kind][0][0]["indexer_kl"] for kind in ("own", "served"))
    assert own > 0
    assert served > 0
    assert own != pytest.approx(served, rel=1e-3)


def _build(rank: int, world_size: int, init_method: str, spec: Any) -> str:
    from tests.trainer.training_ranks import join_ranks
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, spec.config.layout)
    try:
        Training(dataclasses.replace(spec, rank=rank), "cpu")
    except UserError as error:
        return str(error)
    return ""


def test_a_group_across_stages_has_no_common_target() -> None:
    messages = run_ranks(_build, 2, spec=spec_of(0, KINDS["served"], ACROSS, TINY_GLM))
    assert all("part 1 begins with layer 5, which has none" in message for message in messages)
    assert run_ranks(_build, 2, spec=spec_of(0, KINDS["own"], ACROSS, TINY_GLM)) == ["", ""]


def test_a_model_without_indexers_cannot_train_them() -> None:
    (message,) = run_ranks(_build, 1, spec=spec_of(0, KINDS["own"], LayoutConfig(), TINY))
    assert "trainer.policy.indexer.mode=sparse trains indexers, and this model has none" in message


def learn_with_mtp(rank: int, world_size: int, init_method: str) -> tuple[Any, Any, Any]:
    from tests.trainer.training_ranks import join_ranks, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, LayoutConfig())
    config = TINY_GLM | {"num_nextn_predict_layers": 1, "index_share_for_mtp_iteration": True}
    mtp = MtpConfig(mode="joint", positions="all")
    spec = spec_of(rank, KINDS["served"], LayoutConfig(), config, mtp=mtp)
    training = Training(spec, "cpu")
    before = parameters(training)
    statistics = update(training, train_rows(), WHOLE, step=0)
    return statistics, before, parameters(training)


def test_the_mtp_layers_indexer_learns_from_its_first_step() -> None:
    (seen,) = run_ranks(learn_with_mtp, 1)
    learned = {name for name in moved(seen) if ".indexer." in name}
    assert {name for name in learned if name.startswith("model.layers.9.")} != set()
    assert len(learned) == 5 * 5
    assert seen[0]["indexer_kl"] > 0
