"""Rotary embedding of interleaved pairs (v0, v1), (v2, v3), ..."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[t, heads, dim] by cos, sin [t, dim / 2] -> [t, heads, dim]: first halves, then second halves.

    That order is transformers' (`apply_rotary_pos_emb_interleave`); it only has to be the same for
    queries and keys, which are multiplied.
    """
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
