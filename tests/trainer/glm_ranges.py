"""Row ranges of packed sequences, for the tests of the sparse kernels."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


def causal_ranges(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """First and last row of every query of packed sequences."""
    starts = [0, *accumulate(lengths)]
    first = torch.cat([torch.full((n,), s) for n, s in zip(lengths, starts, strict=False)])
    return first, torch.arange(starts[-1])
