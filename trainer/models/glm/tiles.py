"""Tiles of attention: some queries, the rows taken for them, and a mask of who may read what.

A tile is a window of consecutive rows where the chosen rows of its queries lie close together, and the
gathered rows of each single query where they don't. Either way it is one batched product for all heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.models.glm.windows import MAX_TILE, Window, id_windows, range_windows

DENSE_WIDTH = 4
"""A window of up to this many times top_k rows is multiplied whole: cheaper than gathering from it."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries `queries` as [blocks, size]; each block reads `width` rows, under mask [blocks, size, width]."""

    queries: slice
    blocks: int
    size: int
    mask: Tensor
    source: Window | Tensor
    """A window, or the indices [blocks * width] to gather."""

    def take(self, rows: Tensor) -> Tensor:  # [k, dim] -> [blocks, width, dim]
        if isinstance(self.source, Window):
            return self.source.take(rows)
        return rows.index_select(0, self.source).view(self.blocks, -1, rows.shape[1])

    def add(self, rows: Tensor, values: Tensor) -> None:
        """rows [k, dim] += values [blocks, width, dim], the adjoint of `take`; CUDA sums in any order."""
        if isinstance(self.source, Window):
            self.source.add(rows, values)
        else:
            rows.index_add_(0, self.source, values.flatten(0, 1))


@dataclass(frozen=True, slots=True)
class Ranges:
    """Every row from first_rows [q] to last_rows [q], both included; last < first: none."""

    first_rows: Tensor
    last_rows: Tensor

    def tiles(self, *, heads: int, dim: int) -> Iterator[Tile]:
        """As `Ids.tiles`; windows only, so rows are never gathered one by one."""
        for window in range_windows(self.first_rows, self.last_rows, heads=heads):
            mask = window.in_range(self.first_rows, self.last_rows)
            yield Tile(window.queries, window.blocks, window.size, mask, window)


@dataclass(frozen=True, slots=True)
class Ids:
    """The rows `ids` [q, top_k], each at most once a query; negative: none."""

    ids: Tensor

    def tiles(self, *, heads: int, dim: int) -> Iterator[Tile]:
        """Each query in one tile, in order. `heads` and `dim` (of a row) bound what a tile holds."""
        return _id_tiles(self.ids, heads=heads, dim=dim)


Selection = Ids | Ranges
"""Which rows each query reads."""


def _id_tiles(ids: Tensor, *, heads: int, dim: int) -> Iterator[Tile]:
    top_k = ids.shape[1]
    for window in id_windows(ids, heads=heads):
        if window.width <= DENSE_WIDTH * top_k:
            yield Tile(window.queries, window.blocks, window.size, window.among(ids), window)
        else:
            yield from _gathered(ids, window.queries, max(heads, dim))


def _gathered(ids: Tensor, queries: slice, numbers: int) -> Iterator[Tile]:
    at_once = max(1, MAX_TILE[ids.device.type] // (ids.shape[1] * numbers))
    for at in range(queries.start, queries.stop, at_once):
        part = slice(at, min(at + at_once, queries.stop))
        chosen = ids[part]
        indices = chosen.clamp(min=0).flatten()
        yield Tile(part, len(chosen), 1, (chosen >= 0).unsqueeze(1), indices)


def softmax_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def product(a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
    """scale a b of batches of matrices, summed and given in float32 (float64).

    On CUDA 16-bit factors stay as they are, a float32 one beside them is rounded to theirs.
    """
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    narrow = next((x.dtype for x in (a, b) if x.dtype != wide), wide)
    if a.is_cuda and narrow.itemsize == 2:
        wide_product = torch.bmm(a.to(narrow), b.to(narrow), out_dtype=wide)
        return wide_product if scale == 1.0 else wide_product.mul_(scale)
    a, b = a.to(wide), b.to(wide)
    if scale == 1.0:
        return torch.bmm(a, b)
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in float32 (float64); `total` may be a slice of wider rows."""
    if total.is_cuda:
        total += product(a, b)
    else:
        total.baddbmm_(a.to(total.dtype), b.to(total.dtype))
