"""The critic's loss: squared error, plain or clipped, or cross entropy against a distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True, slots=True)
class ValueBins:
    """`count` bins of equal width from `lowest` to `highest`; a return beyond counts as the edge.

    Their centres are the values; `sigma` > 0 (in widths of a bin) makes the target a histogram of a
    Gaussian around the return (HL-Gauss; Farebrother et al., arXiv 2403.03950, sec. 3.1: 0.75), 0 puts
    it on the two nearest centres (two-hot; the mean is the return exactly).
    """

    count: int
    lowest: float
    highest: float
    sigma: float

    @property
    def width(self) -> float:
        return (self.highest - self.lowest) / self.count

    def centres(self, like: Tensor) -> Tensor:
        """[K]"""
        k = torch.arange(self.count, device=like.device, dtype=like.dtype)
        return self.lowest + self.width * (k + 0.5)

    def mean(self, logits: Tensor) -> Tensor:
        """[T, K] -> [T] the value that a distribution stands for."""
        return torch.softmax(logits, dim=-1) @ self.centres(logits)

    def target(self, returns: Tensor) -> Tensor:
        """[T] -> [T, K] probabilities; each row sums to 1."""
        return self._gaussian(returns) if self.sigma > 0 else self._two_hot(returns)

    def _gaussian(self, returns: Tensor) -> Tensor:
        inside = returns.clamp(self.lowest, self.highest)
        k = torch.arange(self.count + 1, device=returns.device, dtype=returns.dtype)
        edges = self.lowest + self.width * k
        scale = math.sqrt(2.0) * self.sigma * self.width
        below = torch.erf((edges - inside[:, None]) / scale)  # [T, K + 1]
        return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])

    def _two_hot(self, returns: Tensor) -> Tensor:
        half = 0.5 * self.width
        inside = returns.clamp(self.lowest + half, self.highest - half)
        place = (inside - self.lowest) / self.width - 0.5  # in centres
        lower = place.floor().clamp(0, max(self.count - 2, 0))
        share = (place - lower).clamp(0.0, 1.0)[:, None]
        target = returns.new_zeros(len(returns), self.count)
        index = lower.long()[:, None]
        target.scatter_add_(1, index, 1.0 - share)
        target.scatter_add_(1, (index + 1).clamp(max=self.count - 1), share)
        return target


def distributional_value_loss(
    logits: Tensor, returns: Tensor, mask: Tensor, *, bins: ValueBins, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the mask of the cross entropy of `logits` [T, K] against the returns' bins, / denominator."""
    logits, returns = logits[mask], returns[mask]
    losses = -(bins.target(returns) * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
    with torch.no_grad():
        beyond = (returns < bins.lowest) | (returns > bins.highest)
        stats = {
            "clipped": beyond.float().sum(),
            "error": (bins.mean(logits) - returns).abs().sum(),
        }
    return losses.sum() / denominator, stats
