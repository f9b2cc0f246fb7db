"""A shard's micro-batch as tensors: the packed tokens, and what is known about the asked-for ones.

Only the asked-for tokens go through the output layer: the logits (or the value) of token t are read at
position t - 1, so a prompt costs no logits. A = asked-for tokens; P = max(A, 1) output positions.

Where prefixes are shared, several tokens may be read at one position: those that follow it in each row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlframe.prefixes import Forest
from trainer.distillation_loss import TeacherStates
from trainer.models.context import ALONE, ContextRank
from trainer.models.packed import PackedBatch, packed_length
from trainer.ranks.shard import RowShard, asked_tokens


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """`fields` are the shard's columns at the asked-for tokens."""

    packed: PackedBatch
    tokens: int  # of the micro-batch's rows, each of them whole
    asked: npt.NDArray[np.intp]  # [A] indices into these, of all context ranks
    targets: Tensor  # [P] int64, the asked-for token ids
    mask: Tensor  # [P] bool; false only for the one dummy position of a micro-batch with A = 0
    fields: dict[str, Tensor]  # each [P], or [P, k]
    traces: Tensor  # [P] int64, which of the micro-batch's rows each asked-for token is of
    teacher: TeacherStates | None = None
    """What the teachers that this rank holds computed, for a divergence in the loss."""


def micro_batches(
    shard: RowShard,
    *,
    multiple_of: int,
    device: torch.device,
    context: ContextRank = ALONE,
    group_of: int = 1,
    share_prefixes: bool = False,
) -> tuple[MicroBatch, ...]:
    """All micro-batches of a shard.

    `multiple_of`: what a context-parallel rank's packed length must divide by. `group_of`: what the
    number of micro-batches must divide by; empty ones (of padding alone) fill the last group.
    `share_prefixes`: what rows of a micro-batch begin with is in its packed row once.
    """
    pieces = list(shard.micro_batches())
    empty = RowShard(shard.lengths[:0], (0,), {n: c[:0] for n, c in shard.columns.items()})
    pieces += [empty] * (-len(pieces) % group_of)
    return tuple(
        _micro_batch(piece, multiple_of, device, context, share_prefixes) for piece in pieces
    )


def _micro_batch(
    piece: RowShard, multiple_of: int, device: torch.device, context: ContextRank, share: bool
) -> MicroBatch:
    """Of the asked-for tokens, those whose logits this context-parallel rank computes."""
    token_rows, tokens = piece.token_rows(), int(piece.lengths.sum())
    forest = Forest.of(token_rows) if share else None
    asked = asked_tokens(piece)
    at = asked - 1 if forest is None else forest.slots[asked - 1]
    packed_tokens = tokens if forest is None else forest.tokens
    own = context.rows(packed_length(packed_tokens, multiple_of * context.parts))
    if context.size > 1:
        here = np.isin(at, own)
        asked, at = asked[here], at[here]
    empty = len(asked) == 0
    positions = own[:1] if empty else at
    packed = PackedBatch.from_rows(
        token_rows,
        multiple_of=multiple_of,
        output_positions=positions,
        device=device,
        context=context,
        forest=forest,
    )

    rows = np.repeat(np.arange(len(piece.lengths)), piece.lengths)

    def take(name: str) -> Tensor:
        if empty:
            return torch.zeros(1, device=device)
        return torch.from_numpy(piece.columns[name][asked]).to(device)

    names = [n for n in piece.columns if n not in ("token_ids", "loss_mask")]
    return MicroBatch(
        packed=packed,
        tokens=tokens,
        asked=asked,
        targets=take("token_ids").long(),
        mask=torch.full((len(positions),), not empty, dtype=torch.bool, device=device),
        fields={name: take(name) for name in names},
        traces=torch.from_numpy(rows[asked] if not empty else np.zeros(1, np.int64)).to(device),
    )
