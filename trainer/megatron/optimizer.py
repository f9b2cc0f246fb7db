"""Megatron's data parallelism and optimizer around one rank's model, and one guarded step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer import optimizer as megatron_optimizer

from rlframe.config.schema import RoleConfig
from trainer.defaults import ddp_defaults
from trainer.megatron import optimizer_state
from trainer.megatron.options import from_options
from trainer.models.language_model import model_chunks
from trainer.ranks.learning_rate import learning_rate


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimizer step did."""

    grad_norm: float
    """Of the whole model, before clipping."""
    stepped: bool
    """False: the gradients were not finite or too large, and the weights are what they were."""


def wrap_model(
    model: torch.nn.Module, config: RoleConfig, *, role: str
) -> list[DistributedDataParallel]:
    """The model's chunks with gradient buffers that are summed (not averaged) over data-parallel ranks.

    Sums, because every loss is divided by the actions of the whole mini-batch before it gets here:
    with `calculate_per_token_loss` Megatron neither averages over ranks nor over micro-batches.
    """
    chunks = model_chunks(model)
    transformer = chunks[0].config
    transformer.calculate_per_token_loss = True
    transformer.finalize_model_grads_func = _finalize
    options = ddp_defaults(config.optimizer) | config.ddp
    ddp = from_options(DistributedDataParallelConfig, options, key=f"trainer.{role}.ddp", ours={})
    wrapped = [
        # As Megatron does: the later parts' gradients are there early, one bucket each will do.
        DistributedDataParallel(transformer, ddp, chunk, disable_bucketing=part > 0)
        for part, chunk in enumerate(chunks)
    ]
    no_sync = [chunk.no_sync for chunk in wrapped]
    if ddp.overlap_grad_reduce:
        transformer.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return wrapped


def _finalize(model: list[torch.nn.Module], num_tokens: Any, **groups: Any) -> None:
    """The schedule hands over a token count to divide by; our loss is divided already."""
    finalize_model_grads(model, None, **groups)


def make_optimizer(
    wrapped: list[DistributedDataParallel], config: RoleConfig, *, role: str, dtype: torch.dtype
) -> MegatronOptimizer:
    """Megatron's optimizer with `config.optimizer` passed through, its state allocated."""
    given, ddp = dict(config.optimizer), wrapped[0].ddp_config
    settings = from_options(
        OptimizerConfig,
        given,
        key=f"trainer.{role}.optimizer",
        ours={
            "lr": config.lr,
            "bf16": dtype == torch.bfloat16,
            "fp16": dtype == torch.float16,
            "params_dtype": dtype,
            "use_distributed_optimizer": ddp.use_distributed_optimizer,
            "overlap_param_gather": ddp.overlap_param_gather,
        },
    )
    settings.min_lr = settings.min_lr or 0.0
    optimizer = get_megatron_optimizer(settings, wrapped, use_gloo_process_groups=False)
    optimizer_state.allocate(optimizer)
    optimizer_state.make_reshardable(optimizer)
    return optimizer


def set_learning_rate(
    optimizer: MegatronOptimizer, config: RoleConfig, *, step: int, total_steps: int
) -> float:
    """Sets it in every parameter group (which may have its own peak) and returns the common one."""
    common = 0.0
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(
            step,
            peak=group["max_lr"],
            floor=group["min_lr"],
            warmup_steps=config.lr_warmup_steps,
            decay=config.lr_decay,
            total_steps=total_steps,
        )
        group["weight_decay"] = optimizer.config.weight_decay * group["wd_mult"]
        common = group["lr"] if group["default_config"] else common
    return common


@torch.no_grad()
def guarded_step(
    optimizer: MegatronOptimizer, *, finite: bool, norm_limit: float = 0.0
) -> StepOutcome:
    """One step, unless `finite` is false, a gradient is not finite or their norm is above `norm_limit`
    (0: there is none); then nothing changes.

    Every rank decides the same: the norm is of the whole model, and `finite` must be agreed on.
    """
    overflow = optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm())
    too_large = norm_limit > 0.0 and grad_norm > norm_limit
    if overflow or not finite or not math.isfinite(grad_norm) or too_large:
        return StepOutcome(grad_norm, stepped=False)
    clip = optimizer.config.clip_grad
    if clip > 0.0:
        _clip(optimizer, clip, grad_norm)
    return StepOutcome(grad_norm, stepped=bool(optimizer.step_with_ready_grads()))


def _clip(optimizer: MegatronOptimizer, limit: float, grad_norm: float) -> None:
    for part in optimizer.chained_optimizers:
        settings = part.config
        # Looked up where the platform module replaces it on the CPU.
        megatron_optimizer.clip_grad_by_total_norm_fp32(
            part.get_parameters(),
            max_norm=limit,
            total_norm=grad_norm,
            use_decoupled_grad=settings.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
        )
