"""The MTP layer as it trains against an independent serving form, step by step, and against itself in every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlframe.config.schema import LayoutConfig, MtpConfig
from rlframe.model_shapes.glm import GlmShape
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.training_ranks import join_ranks
from trainer.models.build import build_model
from trainer.models.glm.cached_decoding import CachedMtp, CachedTarget
from trainer.models.hf_bridge import export_hf
from trainer.models.packed import PackedBatch, forward

STEPS = 7
GLM_MTP = TINY_GLM | {"num_nextn_predict_layers": 1, "index_share_for_mtp_iteration": True}
LENGTHS = (40, 9, 23)
JOINT = MtpConfig(mode="joint", steps=STEPS)


def rows() -> list[Any]:
    return [np.random.default_rng(n).integers(0, 67, n) for n in LENGTHS]


def build(
    mtp: MtpConfig,
    *,
    hf_config: dict[str, Any] = GLM_MTP,
    layout: LayoutConfig | None = None,
    **options: Any,
):
    return build_model(
        hf_config=hf_config, layout=layout or LayoutConfig(), transformer=options, role="policy",
        dtype="float32", device="cpu", seed=1, mtp=mtp,
    )  # fmt: skip


def as_trained(model: torch.nn.Module, sequences: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Drafts [K, T, hidden] and targets [T, hidden]."""
    packed = PackedBatch.from_rows(sequences)
    model.train()
    with torch.no_grad():
        forward(model, packed)
    assert packed.mtp is not None
    return packed.mtp.drafts, packed.mtp.targets


def as_served(shape: GlmShape, tensors: dict[str, torch.Tensor], tokens: torch.Tensor, steps: int):
    """Target hidden [T, hidden] and drafts [K, T - K - 1, hidden], each position a sequence of its own.

    Sequence i has rows 0..i from the target; then it drafts on the data's tokens, one after the other.
    """
    count = len(tokens) - steps - 1
    target = CachedTarget(shape, tensors, batch=1, capacity=len(tokens))
    hidden = target.forward(tokens[None], torch.arange(len(tokens))[None])[0]
    mtp = CachedMtp(shape, tensors, batch=count, capacity=len(tokens))
    for i in range(len(tokens) - 1):
        mtp.extend(
            tokens[i + 1].expand(count, 1),
            hidden[i].expand(count, 1, -1),
            torch.full((count, 1), i),
        )
    drafts = [mtp.begin(torch.arange(count) + 1)]
    for k in range(2, steps + 1):
        drafts.append(mtp.step(tokens[k : k + count]))
    return hidden, torch.stack(drafts)


def differences(
    rank: int, world_size: int, init_method: str, *, wide: bool, share: bool, positions: str
):
    """Largest difference of the target's hidden states, and of each step's, over all documents."""
    join_ranks(rank, world_size, init_method, LayoutConfig())
    hf_config = GLM_MTP | {"index_share_for_mtp_iteration": share}
    model = build(replace(JOINT, query_positions=positions), hf_config=hf_config)
    if wide:
        # Megatron's router casts to float32 inside, whatever its dtype; this process ends with the test.
        torch.Tensor.float = torch.Tensor.double
        model.double()
        model.config.moe_router_dtype = "fp64"
    tensors = {name: tensor.detach().clone() for name, tensor in export_hf(model)}
    drafts, targets = as_trained(model, rows())
    worst = torch.zeros(STEPS + 1, dtype=torch.float64)
    start = 0
    for sequence in rows():
        end = start + len(sequence)
        hidden, served = as_served(
            GlmShape.from_hf(hf_config), tensors, torch.from_numpy(sequence), STEPS
        )
        trained = drafts[:, start : end - STEPS - 1]
        found = [
            (hidden - targets[start:end]).abs().max(),
            *(served - trained).abs().flatten(1).max(1).values,
        ]
        worst = torch.maximum(worst, torch.stack(found).double())
        start = end
    return worst.tolist()


@pytest.mark.parametrize(("wide", "limit"), [(False, 1e-5), (True, 1e-12)])
def test_the_training_form_is_the_serving_form(wide, limit):
    """GLM-5.2: seven steps on rows and ids of the first, far beyond index_topk, packed documents."""
    (worst,) = run_ranks(differences, 1, wide=wide, share=True, positions="served")
    assert max(worst) < limit


def test_without_the_position_shift_it_is_not():
    (worst,) = run_ranks(differences, 1, wide=True, share=True, positions="unshifted")
    assert max(worst[:2]) < 1e-12
    assert min(worst[2:]) > 0.05


def test_with_rows_of_each_step_serving_is_a_mixture_that_training_never_sees():
    """GLM-5.1: the same first step; then served drafts read rows of the target beside their own."""
    (worst,) = run_ranks(differences, 1, wide=True, share=False, positions="served")
    assert max(worst[:2]) < 1e-12
    assert min(worst[2:]) > 0.05
