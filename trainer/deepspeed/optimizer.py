"""The optimizer that DeepSpeed shards, and one guarded step.

DeepSpeed computes the gradient's norm and then calls the optimizer, once a partition. `GuardedStep` stands
between the two: it leaves the whole step out where the norm or the loss can't be trusted, clips otherwise, and
does so the same way for every ZeRO stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlframe.config.schema import RoleConfig
from rlframe.errors import UserError
from trainer.deepspeed.abandoned_build import builds_of, remove_abandoned_lock
from trainer.ranks.learning_rate import learning_rate

MOMENTS: Mapping[str, tuple[str, ...]] = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""Tensors of a parameter's size that each optimizer keeps."""
CLIP_GRAD, WEIGHT_DECAY = 1.0, 0.01
"""Where the user sets none: Megatron's defaults, so that both backends begin from the same."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimizer step did."""

    grad_norm: float
    """Of the whole model, before clipping."""
    stepped: bool
    """False: the gradients were not finite or too large, and the weights are what they were."""


def make_optimizer(
    model: nn.Module, config: RoleConfig, *, offloaded: bool
) -> torch.optim.Optimizer:
    """By `config.optimizer`, in Megatron's names. Vectors and biases do not decay, as in Megatron."""
    given = config.optimizer
    decay = float(given.get("weight_decay", WEIGHT_DECAY))
    groups = [group for group in _groups(model, decay) if group["params"]]
    if given.get("optimizer", "adam") == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=given.get("sgd_momentum", 0.9))
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (given.get("adam_beta1", 0.9), given.get("adam_beta2", 0.999)),
        "eps": given.get("adam_eps", 1e-8),
    }
    if offloaded:
        return _offloaded_adam(groups, options)
    return torch.optim.AdamW(groups, **options)


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    vectors = [p for n, p in named if p.dim() == 1 or n.endswith(".bias")]
    flat = {id(p) for p in vectors}
    matrices = [p for _, p in named if id(p) not in flat]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _offloaded_adam(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    for build in builds_of("cpu_adam"):
        remove_abandoned_lock(build)
    try:
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)  # type: ignore[no-any-return]
    except Exception as error:
        raise UserError(
            "zero_optimization.offload_optimizer needs DeepSpeed's CPU Adam, which is compiled at first use "
            f"and was not: {str(error).strip().splitlines()[0]}. It takes a C++ compiler and ninja; without "
            "them leave offload_optimizer out."
        ) from error


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: RoleConfig, *, step: int, total_steps: int
) -> float:
    """Of loop step `step`, in every group; returns it."""
    rate = learning_rate(
        step,
        peak=config.lr,
        floor=float(config.optimizer.get("min_lr") or 0.0),
        warmup_steps=config.lr_warmup_steps,
        decay=config.lr_decay,
        total_steps=total_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class GuardedStep:
    """Takes the place of `optimizer.step`.

    guard = GuardedStep(optimizer, config, norm=...)
    ...                                             # backward passes
    outcome = guard.take(engine.step, finite=True)  # DeepSpeed calls the guard, or leaves the step out itself
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: RoleConfig, *, norm: Callable[[], float]
    ) -> None:
        """`norm`: of the whole model's gradient, while DeepSpeed steps; the same on every rank."""
        self._optimizer, self._step, self._norm = optimizer, optimizer.step, norm
        self._clip = float(config.optimizer.get("clip_grad", CLIP_GRAD))
        self._limit = config.grad_norm_limit
        self._finite = True
        self._outcome: StepOutcome | None = None
        optimizer.step = self._guarded  # type: ignore[method-assign,assignment]

    def take(self, step: Callable[[], None], *, finite: bool) -> StepOutcome:
        """One step of DeepSpeed's, unless `finite` is false (agreed on by all ranks), a gradient is not
        finite, or their norm is above `grad_norm_limit`."""
        self._finite, self._outcome = finite, None
        step()
        # Where DeepSpeed finds values that are not finite it does not come as far as the optimizer.
        return self._outcome or StepOutcome(math.inf, stepped=False)

    def _guarded(self, closure: Any = None) -> None:
        if self._outcome is None:
            self._outcome = self._decide()
        if not self._outcome.stepped:
            return
        scale = self._clip / (self._outcome.grad_norm + 1e-6) if self._clip > 0.0 else 1.0
        if scale < 1.0:
            for gradient in _gradients(self._optimizer):
                gradient.mul_(scale)
        self._step()

    def _decide(self) -> StepOutcome:
        norm = self._norm()
        # DeepSpeed writes -1 for a norm that is not finite.
        sound = self._finite and math.isfinite(norm) and norm >= 0.0
        too_large = 0.0 < self._limit < norm
        return StepOutcome(norm if norm >= 0.0 else math.inf, stepped=sound and not too_large)


def gradient_norm(optimizer: torch.optim.Optimizer) -> float:
    """L2, of gradients that every rank has whole (ZeRO 0)."""
    norms = [gradient.norm() for gradient in _gradients(optimizer)]
    return float(torch.stack(norms).norm())


def _gradients(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    return [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
