"""Sequences of similar length side by side, for attention without a kernel for packed rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences of similar length, side by side, padded on the right to the longest.

    gather [rows * length]: the packed position of each slot (padding slots repeat a real position);
    slots [tokens]: where in the block its tokens are, in the order of `tokens`;
    tokens [tokens]: the packed positions of the block's tokens.
    """

    rows: int
    length: int
    gather: Tensor
    slots: Tensor
    tokens: Tensor

    @classmethod
    def of(
        cls, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], device: torch.device
    ) -> Block:
        """Sequence i is of `lengths[i]` tokens from position `starts[i]` on."""
        rows, length = len(starts), int(lengths.max())
        columns = np.arange(length)
        within = np.minimum(columns, lengths[:, None] - 1)
        real = columns < lengths[:, None]
        gather = starts[:, None] + within
        return cls(
            rows=rows,
            length=length,
            gather=torch.from_numpy(gather.reshape(-1)).to(device),
            slots=torch.from_numpy(np.flatnonzero(real)).to(device),
            tokens=torch.from_numpy(gather[real]).to(device),
        )


def blocks_of(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], device: torch.device
) -> tuple[Block, ...]:
    """Longest first; a block takes sequences down to `shortest_beside` its longest one."""
    order = np.argsort(-lengths, kind="stable")
    blocks = []
    first = 0
    while first < len(order):
        shortest = shortest_beside(int(lengths[order[first]]))
        last = first
        while last < len(order) and lengths[order[last]] >= shortest:
            last += 1
        members = np.sort(order[first:last])
        blocks.append(Block.of(starts[members], lengths[members], device))
        first = last
    return tuple(blocks)


def shortest_beside(longest: int) -> int:
    """How short a sequence may be in a block as long as `longest`: three quarters of it, or 16 less."""
    return longest - max(16, longest // 4)
