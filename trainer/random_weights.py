"""Random tensors that follow from a seed and a name: the same for every layout, and for both backends."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

VALUE_HEAD_SCALE = 0.1
"""A new value head's values have about this standard deviation (its inputs have unit RMS)."""


def seeded_normal(name: str, size: Sequence[int], *, std: float, seed: int) -> Tensor:
    """One full tensor in float32; its own generator, so that no other tensor's size matters."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(tuple(size)).normal_(0.0, std, generator=generator)
