"""Blocks of queries, and for each the window of consecutive rows that it may read.

Both kernels here and the indexer's loss walk over the same windows, so that what is held at once is
bounded: a tile of `MAX_TILE` scores, whatever the number of tokens is. Queries of short sequences share
a window (the mask keeps them apart); windows of like width are multiplied in one batched product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK_QUERIES = 64
MAX_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Scores held at once: on a CPU as many as its caches keep, on a GPU enough to fill it."""

_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """`blocks` times `size` consecutive queries; block b reads rows starts[b] to starts[b] + width - 1.

    With more than one block a window may run over the last row: `take` repeats that row there, and the
    caller's mask must exclude it.
    """

    first_query: int
    size: int
    starts: tuple[int, ...]
    width: int

    @property
    def blocks(self) -> int:
        return len(self.starts)

    @property
    def queries(self) -> slice:
        return slice(self.first_query, self.first_query + self.blocks * self.size)

    def begins(self, device: torch.device) -> Tensor:  # [blocks, 1] int64
        return torch.tensor(self.starts, device=device).unsqueeze(1)

    def take(
        self, rows: Tensor
    ) -> Tensor:  # [k, dim] -> [blocks, width, dim], a view for one block
        if self.blocks == 1:
            return rows[self.starts[0] : self.starts[0] + self.width].unsqueeze(0)
        return rows.index_select(0, self._indices(rows)).view(self.blocks, self.width, -1)

    def add(self, rows: Tensor, values: Tensor) -> None:
        """rows [k, dim] += values [blocks, width, dim]: the adjoint of `take`."""
        if self.blocks == 1:
            rows[self.starts[0] : self.starts[0] + self.width] += values[0]
        else:
            rows.index_add_(0, self._indices(rows), values.flatten(0, 1))

    def _indices(self, rows: Tensor) -> Tensor:  # [blocks * width]
        columns = torch.arange(self.width, device=rows.device)
        return (self.begins(rows.device) + columns).clamp_(max=rows.shape[0] - 1).flatten()

    def in_range(self, first_rows: Tensor, last_rows: Tensor) -> Tensor:
        """[blocks, size, width] bool: which rows lie in each query's inclusive range [q]."""
        begins = self.begins(first_rows.device).unsqueeze(2)
        absolute = begins + torch.arange(self.width, device=first_rows.device)
        first = first_rows[self.queries].view(self.blocks, self.size, 1)
        last = last_rows[self.queries].view(self.blocks, self.size, 1)
        return (absolute >= first) & (absolute <= last)

    def among(self, ids: Tensor) -> Tensor:
        """[blocks, size, width] bool: which rows are among each query's `ids` [q, top_k]; -1 is none."""
        chosen = ids[self.queries].to(torch.int64).view(self.blocks, self.size, -1)
        slots = torch.where(chosen < 0, self.width, chosen - self.begins(ids.device).unsqueeze(2))
        mask = torch.zeros(
            self.blocks, self.size, self.width + 1, dtype=torch.bool, device=ids.device
        )
        return mask.scatter_(2, slots, True)[..., : self.width]  # the last column takes every -1


def range_windows(
    first_rows: Tensor, last_rows: Tensor, *, heads: int, max_width: int | None = None
) -> Iterator[Window]:
    """Windows that cover inclusive row ranges [q]; an empty range has last < first.

    A tile is [blocks, size, heads, min(width, max_width)]: give `max_width` if you cut windows further.
    """
    budget = MAX_TILE[first_rows.device.type]
    lows, highs = (x.to("cpu", torch.int64).numpy() for x in (first_rows, last_rows))
    return _windows(lows, highs, budget // heads, max_width)


def id_windows(ids: Tensor, *, heads: int) -> Iterator[Window]:
    """Windows that cover `ids` [q, top_k], negative ones left out."""
    first, last = [], []
    for part in torch.split(ids, 4096):  # `where` below copies: never all ids at once
        first.append(torch.where(part < 0, torch.iinfo(part.dtype).max, part).amin(1))
        last.append(part.amax(1))
    return range_windows(torch.cat(first), torch.cat(last), heads=heads)


def _windows(lows: _Rows, highs: _Rows, budget: int, max_width: int | None) -> Iterator[Window]:
    """Neighbouring blocks go together while their tile fits `budget` and padding is at most a half."""
    lows = np.where(highs < lows, np.iinfo(np.int64).max, lows)
    group: list[tuple[int, int]] = []  # (start, width) of each block
    first, size = 0, 0
    for at, block_size, start, width in _blocks(lows, highs, budget, max_width):
        widest = max([width, *(w for _, w in group)])
        fits = (len(group) + 1) * block_size * min(widest, max_width or widest) <= budget
        padded = 2 * (len(group) + 1) * widest > 3 * (width + sum(w for _, w in group))
        if group and (block_size != size or not fits or padded):
            yield _window(first, size, group)
            first, group = at, []
        size = block_size
        group.append((start, width))
    if group:
        yield _window(first, size, group)


def _window(first_query: int, size: int, group: list[tuple[int, int]]) -> Window:
    return Window(first_query, size, tuple(s for s, _ in group), max(w for _, w in group))


def _blocks(
    lows: _Rows, highs: _Rows, budget: int, max_width: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """(first query, number of queries, first row, rows) of one block after the other."""
    at = 0
    while at < len(lows):
        size = min(BLOCK_QUERIES, len(lows) - at)
        while True:
            start = min(int(lows[at : at + size].min()), int(max(highs[at : at + size].max(), 0)))
            width = int(highs[at : at + size].max()) - start + 1
            if size == 1 or size * min(width, max_width or width) <= budget:
                break
            size = (size + 1) // 2
        yield at, size, start, max(width, 1)
        at += size
