"""The critic's loss: squared error, plain or clipped, or cross entropy against a distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.value_bins import beyond_range, expected_value, target
from trainer.objective import ValueBins


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    value_clip: float,
    denominator: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the mask of  1/2 max((V - R)^2, (V_clipped - R)^2), / denominator.

    All tensors are [T]. V_clipped = V_old + clip(V - V_old, -value_clip, value_clip); 0 turns the
    clip off (arXiv 1707.06347's reference implementation; Engstrom et al., arXiv 2005.12729, sec. 3).
    """
    values, old_values, returns = values[mask], old_values[mask], returns[mask]
    losses = (values - returns).square()
    clipped_share = torch.zeros((), device=values.device)
    if value_clip > 0:
        clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
        clipped_losses = (clipped - returns).square()
        # Within the clip the two differ by round-off only, which is no clipping.
        beyond = (values - old_values).abs() > value_clip
        clipped_share = (beyond & (clipped_losses > losses)).float().sum()
        losses = torch.maximum(losses, clipped_losses)
    with torch.no_grad():
        stats = {"clipped": clipped_share, "error": (values - returns).abs().sum()}
    return 0.5 * losses.sum() / denominator, stats


def distributional_value_loss(
    logits: Tensor, returns: Tensor, mask: Tensor, *, bins: ValueBins, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the mask of the cross entropy of `logits` [T, K] against the returns' bins, / denominator.

    `beyond_range` counts the returns that the bins can't express: if there are many, the range is wrong.
    """
    logits, returns = logits[mask], returns[mask]
    losses = -(target(bins, returns) * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
    with torch.no_grad():
        stats = {
            "beyond_range": beyond_range(bins, returns).float().sum(),
            "error": (expected_value(bins, logits) - returns).abs().sum(),
        }
    return losses.sum() / denominator, stats
