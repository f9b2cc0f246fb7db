"""Random forests of traces: the same logprobs, values, loss and gradients for every packing, micro-batch
split and layout, with and without shared prefixes, as one row at a time on one rank.

All are float32 sums in another order. A layout's ranks are started once, for several forests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlframe.config.schema import LayoutConfig
from rlframe.prefixes import Forest
from rlframe.types import BatchPlan
from tests.trainer.forests import random_forest, random_plan
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import TINY
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.train_rows import rank_spec

KINDS = ("policy", "critic")
SEEDS = (0, 1, 2)
STILL: dict[str, Any] = {
    "lr": 0.0,
    "optimizer": {"clip_grad": 0.0},
    "ddp": {"use_distributed_optimizer": False},
}
"""Weights stay as they are, and gradients are whole on every rank."""

FAST: dict[str, LayoutConfig] = {
    "one": LayoutConfig(),
    "data": LayoutConfig(data=2),
    "sequence": LayoutConfig(tensor=2, sequence_parallel=True),
    "pipeline": LayoutConfig(pipeline=2),
    "context": LayoutConfig(context=2),
}
SLOW: dict[str, LayoutConfig] = {
    "tensor": LayoutConfig(tensor=2),
    "context_4": LayoutConfig(context=4),
    "data_context": LayoutConfig(data=2, context=2),
    "context_sequence": LayoutConfig(context=2, tensor=2, sequence_parallel=True),
    "context_pipeline": LayoutConfig(context=2, pipeline=2),
    "all": LayoutConfig(data=2, tensor=2, context=2, pipeline=2, sequence_parallel=True),
}
GLM: dict[str, LayoutConfig] = {
    "one": LayoutConfig(),
    "context": LayoutConfig(context=2, expert=2),
}
GLM_SLOW: dict[str, LayoutConfig] = {
    "sequence": LayoutConfig(tensor=2, sequence_parallel=True, expert=2),
    "pipeline": LayoutConfig(pipeline=2, pipeline_layers="5+4"),
    "data_context_tensor": LayoutConfig(
        data=2, context=2, tensor=2, sequence_parallel=True, expert=4
    ),
}


def learn(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    hf_config: dict[str, Any],
    seeds: tuple[int, ...],
    share: bool,
    alone: bool,
) -> dict[Any, Any]:
    """{(kind, seed): (forward of the shard, statistics, gradients)}; gradients on rank 0."""
    from dataclasses import replace

    from tests.trainer.training_ranks import gradients_of, join_ranks, own_shard, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    seen: dict[Any, Any] = {}
    for kind in KINDS:
        spec = rank_spec(kind, rank=rank, layout=layout, hf_config=hf_config, **STILL)
        training = Training(replace(spec, share_prefixes=share), "cpu")
        for seed in seeds:
            rows = random_forest(seed)
            plan = plan_for(seed, layout, alone)
            read = training.values if kind == "critic" else training.logprobs
            columns = () if kind == "critic" else ("loss_mask",)
            forward = read(own_shard(training, rows, plan, columns))
            statistics = update(training, rows, plan, step=0)
            gradients = gradients_of(training)
            if statistics or rank == 0:
                seen[kind, seed] = (forward, statistics, gradients)
    return seen


def plan_for(seed: int, layout: LayoutConfig, alone: bool) -> BatchPlan:
    rows = len(random_forest(seed))
    if alone:
        return BatchPlan((tuple((row,) for row in range(rows)),), max_tokens=10_000)
    return random_plan(seed, rows, data=layout.data)


@pytest.fixture(scope="module")
def reference() -> dict[Any, Any]:
    return one_row_at_a_time(TINY)


@pytest.fixture(scope="module")
def glm_reference() -> dict[Any, Any]:
    return one_row_at_a_time(TINY_GLM)


def one_row_at_a_time(hf_config: dict[str, Any], seeds: tuple[int, ...] = SEEDS) -> dict[Any, Any]:
    (seen,) = run_ranks(
        learn,
        1,
        layout=LayoutConfig(),
        hf_config=hf_config,
        seeds=seeds,
        share=False,
        alone=True,
    )
    return seen  # type: ignore[no-any-return]


def check(
    reference: dict[Any, Any],
    layout: LayoutConfig,
    hf_config: dict[str, Any],
    *,
    share: bool,
    seeds: tuple[int, ...] = SEEDS,
) -> None:
    from trainer.ranks.shard import join

    ranks = run_ranks(
        learn,
        layout.world_size,
        layout=layout,
        hf_config=hf_config,
        seeds=seeds,
        share=share,
        alone=False,
    )
    for kind in KINDS:
        for seed in seeds:
            rows, plan = random_forest(seed), plan_for(seed, layout, alone=False)
            expected_forward, expected, gradients = reference[kind, seed]
            found = [seen[kind, seed] for seen in ranks if (kind, seed) in seen]
            answers = [f for f in found if f[0] is not None]
            assert len(answers) == layout.data
            joined = join([forward for forward, *_ in answers], rows, plan)
            apart = join([expected_forward], rows, plan_for(seed, layout, alone=True))
            np.testing.assert_allclose(
                np.concatenate(joined), np.concatenate(apart), rtol=0, atol=1e-5
            )
            for _, statistics, _ in answers:
                assert statistics == pytest.approx(expected, rel=2e-5, abs=1e-6), (kind, seed)
            for name, gradient in gradients.items():
                scale = max(float(np.abs(gradient).max()), 1e-6)
                error = np.abs(ranks[0][kind, seed][2][name] - gradient).max() / scale
                assert error < 5e-5, (kind, seed, name, error)


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("name", FAST)
def test_forests(reference: dict[Any, Any], name: str, share: bool) -> None:
    check(reference, FAST[name], TINY, share=share)


@pytest.mark.slow
@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("name", SLOW)
def test_forests_on_more_layouts(reference: dict[Any, Any], name: str, share: bool) -> None:
    check(reference, SLOW[name], TINY, share=share)


@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("name", GLM)
def test_glm_forests(glm_reference: dict[Any, Any], name: str, share: bool) -> None:
    check(glm_reference, GLM[name], TINY_GLM, share=share)


@pytest.mark.slow
@pytest.mark.parametrize("share", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("name", GLM_SLOW)
def test_glm_forests_on_more_layouts(glm_reference: dict[Any, Any], name: str, share: bool) -> None:
    check(glm_reference, GLM_SLOW[name], TINY_GLM, share=share, seeds=SEEDS[:1])


def test_glm_forests_where_every_row_is_chosen() -> None:
    """The expanded form, which is dense attention."""
    config = TINY_GLM | {"index_topk": 64}
    reference = one_row_at_a_time(config, SEEDS[:1])
    check(reference, LayoutConfig(), config, share=True, seeds=SEEDS[:1])


def test_the_forests_have_what_they_are_for() -> None:
    """Guards the tests above: prefixes are shared, twice-sampled tokens too, and rows are of all kinds."""
    forests = [random_forest(seed) for seed in SEEDS]
    laid_out = [Forest.of([row.token_ids for row in rows]) for rows in forests]
    assert all(forest.tokens < 0.9 * forest.lengths.sum() for forest in laid_out)
    twice = []
    for rows, forest in zip(forests, laid_out, strict=True):
        trained = forest.slots[np.concatenate([row.loss_mask for row in rows])]
        twice.append(len(trained) - len(np.unique(trained)))
    assert max(twice) > 0, "some token trains in two rows"
    every = [row for rows in forests for row in rows]
    assert min(len(row.token_ids) for row in every) == 1
    assert any(len(row.token_ids) > 1 and not row.loss_mask.any() for row in every)
    assert any((forest.own == 0).any() for forest in laid_out), "a row that adds nothing"
