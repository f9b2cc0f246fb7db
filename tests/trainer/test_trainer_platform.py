"""Every patch of the CPU platform is still needed: without it, Megatron fails in the named way.

A test that fails here because nothing failed says that upstream has changed: take the patch out.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import LENGTHS, TINY, rows
from tests.trainer.tiny_glm import TINY_GLM
from trainer.megatron import platform
from trainer.megatron.parallel import init_parallel

NORMS_RECOMPUTED = {
    "recompute_granularity": "selective",
    "recompute_modules": ["core_attn", "layernorm"],
}


def train_one_step(
    rank: int,
    world_size: int,
    init_method: str,
    *,
    patch: str = "",
    module: str = "",
    hf_config: dict[str, Any] = TINY,
) -> float:
    """One bfloat16 step with Megatron's own parts: schedule, DDP, distributed optimizer, clipping.

    Without the patch of that name, or with the real torch in that module. Returns the gradient norm.
    """
    platform.install("cpu", without=[patch])
    if module:
        vars(importlib.import_module(f"megatron.core.{module}"))["torch"] = torch
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from trainer.models.build import build_model
    from trainer.models.packed import PackedBatch, forward

    layout = LayoutConfig(pipeline=world_size)
    init_parallel(
        layout=layout,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device="cpu",
        timeout_s=60,
        seed=1,
    )
    model = build_model(
        hf_config=hf_config,
        layout=layout,
        transformer=NORMS_RECOMPUTED,
        role="policy",
        dtype="bfloat16",
        device="cpu",
        seed=1,
    )
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    wrapped = DistributedDataParallel(model.config, ddp, model)
    options = OptimizerConfig(lr=1e-3, clip_grad=1e-3, bf16=True, use_distributed_optimizer=True)
    optimizer = get_megatron_optimizer(options, [wrapped], use_gloo_process_groups=False)

    def step(batches: Any, wrapped: Any) -> Any:
        output = forward(wrapped, next(batches))
        return output, lambda logits: (logits.float().square().sum(), {})

    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([PackedBatch.from_rows(rows(LENGTHS))]),
        model=[wrapped],
        num_microbatches=1,
        seq_length=1,
        micro_batch_size=1,
        forward_only=False,
    )
    finalize_model_grads([wrapped])
    _, norm, _ = optimizer.step()
    return float(norm)


@pytest.mark.parametrize("hf_config", [TINY, TINY_GLM], ids=["dense", "glm"])
def test_with_all_patches_it_trains_and_ranks_agree(hf_config: dict[str, Any]) -> None:
    (alone,) = run_ranks(train_one_step, 1, hf_config=hf_config)
    first, second = run_ranks(train_one_step, 2, hf_config=hf_config)
    assert alone > 0
    assert first == second == pytest.approx(alone, rel=1e-2)  # bfloat16


NO_CUDA = "Torch not compiled with CUDA enabled|No CUDA GPUs|Found no NVIDIA driver"
FAILURES = {
    "current_device_is_the_cpu": (1, NO_CUDA),
    "synchronize_has_nothing_to_wait_for": (2, NO_CUDA),
    "literal_cuda_devices_are_the_cpu": (1, NO_CUDA),
    "moving_to_cuda_keeps_the_cpu": (2, NO_CUDA),
    "rng_tracker_uses_the_cpu_generator": (1, NO_CUDA),
    "clipping_takes_cpu_gradients": (1, "torch.cuda.FloatTensor"),
    "optimizers_know_cpu_tensors": (1, "Wrapped parameters must be one of"),
    "expert_dispatch_needs_no_stream": (1, f"{NO_CUDA}|requires CUDA support"),
    "router_has_no_fused_product": (1, "te_general_gemm"),
    "recomputed_outputs_have_no_fp8": (1, "FP8GlobalStateManager"),
}
OF_EXPERTS = ("expert_dispatch_needs_no_stream", "router_has_no_fused_product")


def test_every_patch_is_listed_here() -> None:
    assert [patch.__name__ for patch in platform.PATCHES] == list(FAILURES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, nothing fails without patches")
@pytest.mark.parametrize("patch", FAILURES)
def test_megatron_fails_without(patch: str) -> None:
    ranks, failure = FAILURES[patch]
    config = TINY_GLM if patch in OF_EXPERTS else TINY  # TINY has tied embeddings
    with pytest.raises(RuntimeError, match=failure):
        run_ranks(train_one_step, ranks, patch=patch, hf_config=config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, nothing fails without patches")
@pytest.mark.parametrize("module", platform.MODULES_WITH_LITERAL_CUDA)
def test_megatron_fails_with_literal_cuda_in(module: str) -> None:
    with pytest.raises(RuntimeError, match=NO_CUDA):
        run_ranks(train_one_step, 1, module=module)


def test_only_what_needs_no_transformer_engine_is_patched_for_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "_installed", False)
    ran: list[str] = []
    for name in ("PATCHES", "WITHOUT_TRANSFORMER_ENGINE"):
        monkeypatch.setattr(platform, name, (lambda name=name: ran.append(name),))
    platform.install("cuda:0")
    assert ran == ["WITHOUT_TRANSFORMER_ENGINE"]
