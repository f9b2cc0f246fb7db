"""Ids that travel to the next pipeline part in the same message as the hidden states.

Megatron's stages exchange one tensor of the model's dtype. Ids are int32, so their bits are laid behind
each token's hidden state as numbers of that dtype, which nothing computes with: one number an id in
float32, two in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_ids(hidden: Tensor, ids: Tensor) -> Tensor:
    """[t, 1, hidden] and int32 [t, k] -> [t, 1, hidden + k * 4 / bytes of a number]."""
    bits = ids.contiguous().view(hidden.dtype).unsqueeze(1)
    return torch.cat((hidden, bits), dim=-1)


def without_ids(message: Tensor, hidden: int, top_k: int) -> tuple[Tensor, Tensor]:
    """The inverse. Gradients flow through the hidden states only."""
    states, bits = message[..., :hidden], message[..., hidden:]
    ids = bits.detach().squeeze(1).contiguous().view(torch.int32)
    assert ids.shape[1] == top_k, f"{ids.shape[1]} ids a token arrived, not {top_k}"
    return states.contiguous(), ids
