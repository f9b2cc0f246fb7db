"""A shard's micro-batch as tensors: the packed tokens, and what is known about the asked-for ones.

Only the asked-for tokens go through the output layer: the logits (or the value) of token t are read at
position t - 1, so a prompt costs no logits. A = asked-for tokens; P = max(A, 1) output positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.megatron.shard import RowShard
from trainer.models.packed import PackedBatch


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """`fields` are the shard's columns at the asked-for tokens."""

    packed: PackedBatch
    asked: npt.NDArray[np.intp]  # [A] indices into the micro-batch's tokens
    targets: Tensor  # [P] int64, the asked-for token ids
    mask: Tensor  # [P] bool; false only for the one dummy position of a micro-batch with A = 0
    fields: dict[str, Tensor]  # each [P]


def asked_tokens(shard: RowShard) -> npt.NDArray[np.intp]:
    """Indices of a micro-batch's tokens under `loss_mask`; all but each row's first without one."""
    if "loss_mask" in shard.columns:
        return np.flatnonzero(shard.columns["loss_mask"])
    wanted = np.ones(int(shard.lengths.sum()), dtype=bool)
    starts = np.cumsum(shard.lengths) - shard.lengths
    wanted[starts[shard.lengths > 0]] = False
    return np.flatnonzero(wanted)


def micro_batches(
    shard: RowShard, *, multiple_of: int, device: torch.device
) -> tuple[MicroBatch, ...]:
    """All micro-batches of a shard. `multiple_of`: what the packed length must divide by."""
    return tuple(
        _micro_batch(piece, multiple_of=multiple_of, device=device)
        for piece in shard.micro_batches()
    )


def _micro_batch(piece: RowShard, *, multiple_of: int, device: torch.device) -> MicroBatch:
    asked = asked_tokens(piece)
    empty = len(asked) == 0
    positions = np.zeros(1, np.int64) if empty else asked - 1
    packed = PackedBatch.from_rows(
        piece.token_rows(), multiple_of=multiple_of, output_positions=positions, device=device
    )

    def take(name: str) -> Tensor:
        if empty:
            return torch.zeros(1, device=device)
        return torch.from_numpy(piece.columns[name][asked]).to(device)

    names = [n for n in piece.columns if n not in ("token_ids", "loss_mask")]
    return MicroBatch(
        packed=packed,
        asked=asked,
        targets=take("token_ids").long(),
        mask=torch.full((len(positions),), not empty, dtype=torch.bool, device=device),
        fields={name: take(name) for name in names},
    )
