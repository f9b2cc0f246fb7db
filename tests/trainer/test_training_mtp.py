"""MTP in training: every layout and split gives the same losses and weights, and each mode trains what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlframe.config.schema import IndexerConfig, LayoutConfig, MtpConfig
from rlframe.types import BatchPlan
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.train_rows import plan_of, rank_spec, train_rows
from trainer.ranks.spec import ModelSource

SHARED = TINY_GLM | {
    "num_hidden_layers": 4,
    "indexer_types": ["full", "full", "full", "shared"],
    "num_nextn_predict_layers": 1,
    "index_share_for_mtp_iteration": True,
}
OWN = SHARED | {"index_share_for_mtp_iteration": False}
LENGTHS = (40, 9, 23)
WHOLE = plan_of(((0, 1, 2),))
SPLIT = plan_of(((2, 0), (1,), ()))
HALVES = plan_of(((2,), (1,)), ((0,), ()))
MTP = "model.layers.4."

LAYOUTS: dict[str, tuple[LayoutConfig, BatchPlan]] = {
    "split": (LayoutConfig(), SPLIT),
    "data": (LayoutConfig(data=2), HALVES),
    "pipeline": (LayoutConfig(pipeline=2), SPLIT),
    "sequence": (LayoutConfig(tensor=2, sequence_parallel=True), SPLIT),
    "expert": (LayoutConfig(data=2, expert=2), HALVES),
}


def learn(
    rank: int,
    world_size: int,
    init_method: str,
    *,
    layout: LayoutConfig,
    plan: BatchPlan,
    mtp: MtpConfig,
    hf_config: dict[str, Any],
    kind: str = "sft",
    transformer: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    indexer: IndexerConfig | None = None,
) -> tuple[Any, Any, Any]:
    """Two updates: their statistics, the weights before and after them."""
    from tests.trainer.training_ranks import join_ranks, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    more: dict[str, Any] = {} if optimizer is None else {"optimizer": optimizer}
    more["indexer"] = indexer or IndexerConfig()
    spec = rank_spec(kind, rank=rank, layout=layout, mtp=mtp, transformer=transformer or {}, **more)
    source = ModelSource(hf_config=hf_config, path="", dtype="float32", seed=3)
    training = Training(replace(spec, model=source), "cpu")
    before = parameters(training)
    rows = train_rows(LENGTHS)
    steps = [update(training, rows, plan, step=step) for step in range(2)]
    return steps, before, parameters(training)


def alone(mtp: MtpConfig, **options: Any) -> tuple[Any, Any, Any]:
    given = {"hf_config": SHARED, "plan": WHOLE, **options}
    (seen,) = run_ranks(learn, 1, layout=LayoutConfig(), mtp=mtp, **given)
    return seen


def options_of(mode: str, **more: Any) -> MtpConfig:
    return MtpConfig(mode=mode, steps=3, loss="e2e_tv", weight=0.5, positions="all", **more)


@pytest.fixture(scope="module")
def reference() -> dict[bool, Any]:
    return {share: alone(options_of("joint", ce_weight=0.3), hf_config=config) for share, config in
            ((True, SHARED), (False, OWN))}  # fmt: skip


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_learns_the_same(reference, name, share):
    layout, plan = LAYOUTS[name]
    expected_steps, _, expected = reference[share]
    ranks = run_ranks(
        learn, layout.world_size, layout=layout, plan=plan, hf_config=SHARED if share else OWN,
        mtp=options_of("joint", ce_weight=0.3),
    )  # fmt: skip
    seen = [steps for steps, _, _ in ranks if steps[0] is not None]
    assert len(seen) >= layout.data
    for steps in seen:
        for step, wanted in zip(steps, expected_steps, strict=True):
            assert step == pytest.approx(wanted, rel=5e-5, abs=2e-6)
    for tensor, wanted in expected.items():
        np.testing.assert_allclose(ranks[0][2][tensor], wanted, rtol=0, atol=1e-5, err_msg=tensor)


@pytest.mark.parametrize("share", [True, False])
def test_recomputation_changes_nothing(reference, share):
    steps, _, weights = alone(
        options_of("joint", ce_weight=0.3),
        hf_config=SHARED if share else OWN,
        transformer={"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    )  # fmt: skip
    expected_steps, _, expected = reference[share]
    assert steps[1] == pytest.approx(expected_steps[1], rel=1e-6)
    for name, wanted in expected.items():
        np.testing.assert_allclose(weights[name], wanted, rtol=0, atol=1e-6, err_msg=name)


def moved(before: Any, after: Any) -> set[str]:
    return {name for name in before if np.abs(after[name] - before[name]).max() > 1e-6}


def test_the_frozen_trunk_stays():
    steps, before, after = alone(options_of("frozen_trunk"))
    changed = moved(before, after)
    assert changed
    assert all(name.startswith(MTP) for name in changed)
    still = {n for n in before if n.startswith(MTP)} - changed
    assert all("indexer" in name or "correction_bias" in name for name in still)
    assert steps[1]["mtp_loss"] < steps[0]["mtp_loss"]
    assert steps[1]["loss"] == steps[0]["loss"]


@pytest.mark.parametrize("config", [SHARED, OWN])
def test_its_indexer_learns_beside_it_and_the_trunks_do_not(config):
    indexer = IndexerConfig(mode="sparse", coefficient=1.0)
    steps, before, after = alone(
        options_of("frozen_trunk"), indexer=indexer, hf_config=config
    )  # fmt: skip
    changed = moved(before, after)
    assert f"{MTP}self_attn.indexer.wq_b.weight" in changed
    assert all(name.startswith(MTP) for name in changed)
    assert steps[1]["indexer_kl"] < steps[0]["indexer_kl"]


def test_a_detached_trunk_learns_as_if_there_were_no_mtp():
    """Without clipping, whose norm is of all gradients together."""
    free = {"optimizer": {"adam_eps": 1e-3, "clip_grad": 0.0}}
    steps, before, after = alone(options_of("detached"), kind="policy", **free)
    plain_steps, _, plain = alone(MtpConfig(), kind="policy", **free)
    assert steps[1]["loss"] == pytest.approx(plain_steps[1]["loss"], rel=1e-6)
    for name, wanted in plain.items():
        np.testing.assert_allclose(after[name], wanted, rtol=0, atol=1e-7, err_msg=name)
    assert any(name.startswith(MTP) for name in moved(before, after))
    assert not any(name.startswith(MTP) for name in plain)


def test_a_joint_trunk_hears_of_mtp():
    free = {"optimizer": {"adam_eps": 1e-3, "clip_grad": 0.0}}
    _, _, after = alone(options_of("joint"), **free)
    _, _, plain = alone(MtpConfig(), **free)
    name = "model.layers.3.self_attn.o_proj.weight"
    assert np.abs(after[name] - plain[name]).max() > 1e-5


def test_metrics_say_what_drafting_would_come_to():
    steps, _, _ = alone(options_of("joint"))
    seen = steps[0]
    rates = [seen[f"mtp_accept_{k}"] for k in (1, 2, 3)]
    assert all(0 < rate < 1 for rate in rates)
    assert 1 + rates[0] < seen["mtp_accept_length"] < 4
    assert seen["mtp_loss"] == pytest.approx(1 - (seen["mtp_accept_length"] - 1) / 3, rel=1e-6)


def test_only_positions_whose_labels_are_actions_count():
    everywhere, _, _ = alone(options_of("joint"))
    actions, _, _ = alone(replace(options_of("joint"), positions="actions"))
    assert everywhere[0]["mtp_loss"] != pytest.approx(actions[0]["mtp_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("mtp", "config", "layout", "words"),
    [
        (options_of("joint"), TINY_GLM, LayoutConfig(), "num_nextn_predict_layers"),
        (options_of("joint"), SHARED, LayoutConfig(context=2), "layout.context"),
        (options_of("frozen_trunk"), SHARED, LayoutConfig(pipeline=2), "mode=detached"),
    ],
)
def test_what_cannot_be_is_refused(mtp, config, layout, words):
    from rlframe.errors import UserError
    from rlframe.model_shapes.glm import GlmShape
    from rlframe.model_shapes.mtp import check_mtp

    with pytest.raises(UserError, match=words):
        check_mtp(mtp, GlmShape.from_hf(config), layout, "policy")
