"""Values as distributions over bins: what outputs stand for, and what a return's target is.

K bins; see `trainer.objective.ValueBins` for what they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.objective import ValueBins


def centres(bins: ValueBins, like: Tensor) -> Tensor:
    """[K]"""
    k = torch.arange(bins.count, device=like.device, dtype=like.dtype)
    return bins.first + bins.width * k


def expected_value(bins: ValueBins, logits: Tensor) -> Tensor:
    """[T, K] -> [T]"""
    return torch.softmax(logits, dim=-1) @ centres(bins, logits)


def target(bins: ValueBins, returns: Tensor) -> Tensor:
    """[T] -> [T, K] probabilities; each row sums to 1."""
    inside = returns.clamp(bins.lowest, bins.highest)
    return _gaussian(bins, inside) if bins.sigma > 0 else _two_hot(bins, inside)


def beyond_range(bins: ValueBins, returns: Tensor) -> Tensor:
    """[T] bool"""
    return (returns < bins.lowest) | (returns > bins.highest)


def _gaussian(bins: ValueBins, inside: Tensor) -> Tensor:
    """The mass of each bin, of a normal that is cut off at the range's ends."""
    k = torch.arange(bins.count + 1, device=inside.device, dtype=inside.dtype)
    edges = bins.lowest + bins.width * k
    scale = math.sqrt(2.0) * bins.sigma * bins.width
    below = torch.erf((edges - inside[:, None]) / scale)  # [T, K + 1]
    return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


def _two_hot(bins: ValueBins, inside: Tensor) -> Tensor:
    place = (inside - bins.lowest) / bins.width
    lower = place.floor().clamp(0, bins.count - 2)
    share = (place - lower).clamp(0.0, 1.0)[:, None]
    index = lower.long()[:, None]
    two_hot = inside.new_zeros(len(inside), bins.count)
    two_hot.scatter_(1, index, 1.0 - share)
    return two_hot.scatter_(1, index + 1, share)
