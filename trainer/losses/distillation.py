"""The loss that pulls a policy towards its teachers, from divergences a position."""

from __future__ import annotations

from torch import Tensor


def distillation_loss(
    divergences: Tensor,
    mask: Tensor,
    weights: Tensor | None = None,
    *,
    coef: float,
    denominator: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """coef * sum over the mask of weight * divergence, / denominator. All tensors are [T].

    `weights` are how much each token counts: of its domain, and of its part in the policy's loss. The
    statistic is the plain sum of the divergences, to be divided by the same number.
    """
    chosen = divergences[mask]
    statistics = {"teacher_divergence": chosen.detach().sum()}
    if weights is not None:
        chosen = chosen * weights[mask]
    return coef * chosen.sum() / denominator, statistics
