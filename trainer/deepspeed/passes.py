"""What goes through the model at once: rows that see nothing of each other, whatever the model is.

Rows of like length stand side by side, padded on the right. Causal models see only what is left of a
token, so that no mask is needed and no padding is ever seen: exact for every architecture (learned or
rotary positions, sliding windows, states instead of attention). Where attention has kernels for rows end to
end (flash attention), a micro-batch is one row of all its tokens, and `position_ids` that begin again say
where rows do.

A micro-batch may become several passes: losses are sums, so nothing changes. No pass has more slots than
its micro-batch has tokens, so that `trainer.max_tokens_per_micro_batch` still bounds memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.ranks.shard import RowShard, asked_tokens

PADDING_TOKEN = 0
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """n rows in L slots each; A asked-for tokens; P = max(A, 1) output positions.

    The logits (or the value) of token t are read at t - 1. `fields` are the shard's columns there.
    """

    input_ids: Tensor  # [n, L] int64
    position_ids: Tensor | None  # [n, L] int64, or the model's own
    positions: Tensor  # [P] int64, indices into the n * L slots
    asked: Indices  # [A] indices into the shard's tokens
    targets: Tensor  # [P] int64, ids of the asked-for tokens
    mask: Tensor  # [P] bool; false only for the one position of a pass with A = 0
    fields: dict[str, Tensor]  # each [P]
    traces: Tensor  # [P] int64, which of the pass's rows each asked-for token is of


def passes_of(shard: RowShard, *, packed: bool, device: torch.device) -> list[Pass]:
    """All passes of a shard. Rows without an asked-for token are left out, and so is what follows the last
    one of a row: nothing that is asked for depends on them."""
    found, begin = [], 0
    for piece in shard.micro_batches():
        found += [_pass(piece, members, begin, device) for members in _groups(piece, packed)]
        begin += len(piece.columns["token_ids"])
    return found


def idle_pass(shard: RowShard, device: torch.device) -> Pass:
    """For a rank that has fewer passes than another: one token, nothing asked, no gradient."""
    names = _field_names(shard)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return Pass(
        input_ids=zero.unsqueeze(0),
        position_ids=None,
        positions=zero,
        asked=np.zeros(0, np.intp),
        targets=zero,
        mask=torch.zeros(1, dtype=torch.bool, device=device),
        fields={name: torch.zeros(1, device=device) for name in names},
        traces=zero,
    )


@dataclass(frozen=True, slots=True)
class _Members:
    """Rows of one pass: their numbers, and how many of their tokens the model is given."""

    rows: Indices  # [n]
    lengths: Indices  # [n]
    packed: bool


def _groups(piece: RowShard, packed: bool) -> Iterator[_Members]:
    """The rows of each pass; a padded one takes rows down to three quarters of its longest."""
    needed = _needed(piece)
    rows = np.flatnonzero(needed)
    if packed:
        if len(rows):
            yield _Members(rows, needed[rows], packed=True)
        return
    order = rows[np.argsort(-needed[rows], kind="stable")]
    room, first = len(piece.columns["token_ids"]), 0
    while first < len(order):
        longest = needed[order[first]]
        shortest = longest - max(16, longest // 4)
        last = first + 1
        while (
            last < len(order)
            and needed[order[last]] >= shortest
            and (last + 1 - first) * longest <= room
        ):
            last += 1
        members = order[first:last]
        yield _Members(members, needed[members], packed=False)
        first = last


def _needed(piece: RowShard) -> Indices:
    """[N] tokens of each row before its last asked-for one: those that its outputs depend on."""
    starts, rows = _starts(piece), _row_of_token(piece)
    asked = asked_tokens(piece)
    needed = np.zeros(len(piece.lengths), np.intp)
    np.maximum.at(needed, rows[asked], asked - starts[rows[asked]])
    return needed


def _pass(piece: RowShard, members: _Members, begin: int, device: torch.device) -> Pass:
    starts, rows = _starts(piece), _row_of_token(piece)
    width = int(members.lengths.sum() if members.packed else members.lengths.max())
    count = 1 if members.packed else len(members.rows)
    offsets = (
        np.cumsum(members.lengths) - members.lengths if members.packed else np.arange(count) * width
    )
    ids = np.full(count * width, PADDING_TOKEN, np.int64)
    within = np.zeros(count * width, np.int64)
    for offset, row, length in zip(offsets, members.rows, members.lengths, strict=True):
        ids[offset : offset + length] = piece.columns["token_ids"][starts[row] :][:length]
        within[offset : offset + length] = np.arange(length)
    number = np.full(len(piece.lengths), -1, np.intp)
    number[members.rows] = np.arange(len(members.rows))
    asked = asked_tokens(piece)
    asked = asked[number[rows[asked]] >= 0]
    traces = number[rows[asked]]
    positions = offsets[traces] + asked - starts[rows[asked]] - 1

    def tensor(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return Pass(
        input_ids=tensor(ids.reshape(count, width)),
        position_ids=tensor(within.reshape(count, width)) if members.packed else None,
        positions=tensor(positions.astype(np.int64)),
        asked=asked + begin,
        targets=tensor(piece.columns["token_ids"][asked]).long(),
        mask=torch.ones(len(asked), dtype=torch.bool, device=device),
        fields={name: tensor(piece.columns[name][asked]) for name in _field_names(piece)},
        traces=tensor(traces.astype(np.int64)),
    )


def _starts(piece: RowShard) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = piece.lengths.astype(np.int64)
    return np.cumsum(lengths) - lengths


def _row_of_token(piece: RowShard) -> Indices:
    return np.repeat(np.arange(len(piece.lengths)), piece.lengths)


def _field_names(shard: RowShard) -> Sequence[str]:
    return [name for name in shard.columns if name not in ("token_ids", "loss_mask")]
