"""Rows with credit, plans over them, and specs of tiny ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlframe.config.schema import CriticRoleConfig, LayoutConfig, PolicyRoleConfig
from rlframe.model_shapes.value_head import VALUE_BINS
from rlframe.types import BatchPlan, TrainRow
from tests.trainer.tiny import LENGTHS, TINY
from trainer.objective import (
    Objective,
    PolicyObjective,
    SftObjective,
    ValueBins,
    ValueObjective,
)
from trainer.ranks.spec import ModelSource, RankSpec, Role

BINS = {"count": 21, "lowest": -2.0, "highest": 3.0, "sigma": 0.75}

OBJECTIVES: dict[str, Objective] = {
    "policy": PolicyObjective(
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=3.0,
        importance_cap=2.0,
        entropy_coef=0.01,
        temperature=0.8,
    ),
    "critic": ValueObjective(value_clip=0.2),
    "critic_bins": ValueObjective(value_clip=0.0, bins=ValueBins(**BINS)),
    "sft": SftObjective(),
}


def train_rows(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> list[TrainRow]:
    """About half of the tokens train; a row of one token trains nothing."""
    rng = np.random.default_rng([seed, *lengths])
    return [_row(rng, length) for length in lengths]


def _row(rng: np.random.Generator, length: int) -> TrainRow:
    mask = rng.random(length) < 0.5
    mask[0] = False

    def column(centre: float, scale: float) -> Any:
        return np.where(mask, rng.normal(centre, scale, length), 0.0).astype(np.float32)

    return TrainRow(
        token_ids=rng.integers(0, TINY["vocab_size"], length, dtype=np.int32),
        loss_mask=mask,
        advantages=column(0.0, 1.0),
        returns=column(0.5, 1.0),
        old_logprobs=column(-4.2, 0.3),
        old_values=column(0.0, 0.1),
        rollout_logprobs=column(-4.2, 0.3),
    )


def plan_of(*ranks: tuple[tuple[int, ...], ...]) -> BatchPlan:
    """`plan_of(((0, 1), (2,)), ((3,), ()))`: micro-batches of each data-parallel rank."""
    return BatchPlan(micro_batches=ranks, max_tokens=1000)


def rank_spec(
    kind: str,
    *,
    rank: int = 0,
    layout: LayoutConfig | None = None,
    path: str = "",
    hf_config: Mapping[str, Any] = TINY,
    **config: Any,
) -> RankSpec:
    """A rank of a tiny model. `kind` is a key of OBJECTIVES; `config` are fields of its RoleConfig."""
    role: Role = "critic" if kind.startswith("critic") else "policy"
    if kind == "critic_bins":
        hf_config = {**hf_config, VALUE_BINS: BINS}
    settings = {"lr": 1e-2, "optimizer": {"adam_eps": 1e-3}, **config}
    return RankSpec(
        role=role,
        rank=rank,
        config=(CriticRoleConfig if role == "critic" else PolicyRoleConfig)(
            layout=layout or LayoutConfig(), **settings
        ),
        model=ModelSource(hf_config=hf_config, path=path, dtype="float32", seed=3),
        objective=OBJECTIVES[kind],
        total_steps=10,
        device="cpu",
        num_threads=1,
        collective_timeout_s=60.0,
    )
