"""Which Hugging Face tensors each Megatron parameter is made of, in both directions.

Megatron keeps q, k and v in one matrix, group by group (the query heads of a group, its key head, its
value head), and gate and up in another; tensor parallelism cuts those, the vocabulary by rows, and the
matrices that follow by columns. Every function here only moves numbers, so the round trip is exact.
Which entries a model has is said by `trainer.models.model_names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
VALUE_HEAD = "score.weight"

Size = tuple[int, ...]


class Cut(Enum):
    """How a parameter follows from its full tensors."""

    WHOLE = "the same on every tensor-parallel rank"
    VOCABULARY = "rows, padded with zeros to a multiple of the ranks"
    ROWS = "rows"
    COLUMNS = "columns"
    QKV = "query, key and value heads, by groups"
    GATE_UP = "the rank's rows of gate, then its rows of up"
    EXPERT = "gate then up, or down, whole, on the expert-parallel rank that has the expert"


@dataclass(frozen=True, slots=True)
class Entry:
    """One Megatron parameter (or buffer) of one pipeline chunk, and the Hugging Face tensors in it."""

    parameter: str
    tensors: tuple[str, ...]
    shapes: tuple[Size, ...]
    """Of the full tensors."""
    cut: Cut
    exported: bool = True
    """False for the second copy of tied embeddings."""
    groups: int = 0
    """QKV only: key/value heads of the whole model."""
    expert_rank: int = 0
    """EXPERT only: the expert-parallel rank that has it; the others have no such parameter."""
    keeps_float32: bool = False
    """Stays float32, in memory and on disk, whatever the model's dtype is."""


def cut(entry: Entry, full: Mapping[str, Tensor], *, rank: int, size: int) -> Tensor:
    """The part of tensor-parallel rank `rank` of `size`: a view where it can be one."""
    tensors = [full[name] for name in entry.tensors]
    match entry.cut:
        case Cut.WHOLE:
            return tensors[0]
        case Cut.VOCABULARY:
            rows = part_shape(entry, size=size)[0]
            part = tensors[0][rank * rows : (rank + 1) * rows]
            missing = rows - part.shape[0]
            return torch.cat((part, part.new_zeros(missing, part.shape[1]))) if missing else part
        case Cut.ROWS:
            return tensors[0].chunk(size)[rank]
        case Cut.COLUMNS:
            return tensors[0].chunk(size, dim=1)[rank]
        case Cut.QKV:
            groups = [_grouped(t, entry.groups).chunk(size)[rank] for t in tensors]
            return torch.cat(groups, dim=1).flatten(0, 1)
        case Cut.GATE_UP:
            return torch.cat([t.chunk(size)[rank] for t in tensors])
        case Cut.EXPERT:
            return _joined(tensors, dim=0)


def part_shape(entry: Entry, *, size: int) -> Size:
    """The shape of the parameter on each of `size` tensor-parallel ranks."""
    rows = sum(shape[0] for shape in entry.shapes)
    rest = entry.shapes[0][1:]
    match entry.cut:
        case Cut.WHOLE | Cut.EXPERT:
            return (rows, *rest)
        case Cut.VOCABULARY:
            return (-(-rows // size), *rest)
        case Cut.COLUMNS:
            return (rows, rest[0] // size)
        case Cut.ROWS | Cut.QKV | Cut.GATE_UP:
            return (rows // size, *rest)


def join(entry: Entry, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """The full tensors, from the parts of all tensor-parallel ranks in order. Inverse of `cut`.

    Views of the parts where that is possible (one rank: everything but q, k and v).
    """
    match entry.cut:
        case Cut.WHOLE:
            tensors = [parts[0]]
        case Cut.VOCABULARY:
            tensors = [_joined(parts, dim=0)[: entry.shapes[0][0]]]
        case Cut.ROWS:
            tensors = [_joined(parts, dim=0)]
        case Cut.COLUMNS:
            tensors = [_joined(parts, dim=1)]
        case Cut.QKV:
            groups = _joined([_grouped(p, entry.groups // len(parts)) for p in parts], dim=0)
            sizes = [shape[0] // entry.groups for shape in entry.shapes]
            tensors = [t.flatten(0, 1) for t in torch.split(groups, sizes, dim=1)]
        case Cut.GATE_UP:
            halves = [p.chunk(2) for p in parts]
            tensors = [_joined([h[i] for h in halves], dim=0) for i in (0, 1)]
        case Cut.EXPERT:
            tensors = list(torch.split(parts[0], [shape[0] for shape in entry.shapes]))
    return dict(zip(entry.tensors, tensors, strict=True))


def _joined(parts: Sequence[Tensor], *, dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _grouped(rows: Tensor, groups: int) -> Tensor:  # [groups * n, hidden] -> [groups, n, hidden]
    return rows.view(groups, -1, rows.shape[1])
