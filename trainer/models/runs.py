"""Attention where a sequence is not one piece of the packed row: shared prefixes, context parallelism.

A *path* is a sequence of the packed row: where its tokens are, one after the other. Its last ones are its
own, and stand together; those before them are of paths that begin with the same tokens. A *run* is a piece
of a path's own tokens that one rank has, as queries: its keys are the path up to the run's last token. So
query j of a run of q, over k keys, sees the first k - q + j + 1 of them (causal, aligned at the end).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlframe.prefixes import Forest
from trainer.models.blocks import Block, shortest_beside
from trainer.models.context import ContextRank

Indices = npt.NDArray[np.int64]
BLOCK_SCORES = 1 << 24
"""Query-key pairs of a block of runs, padding included, unless one run has more: its mask has as many."""


@dataclass(frozen=True, eq=False)
class Paths:
    """P paths; K tokens of all of them together, of which own ones are in the packed row once each."""

    ends: Indices  # [P + 1]: path i's own tokens are the positions ends[i] to ends[i + 1]
    keys: Indices  # [K] packed positions, path by path
    starts: Indices  # [P + 1]: path i is keys[starts[i]:starts[i + 1]]

    @classmethod
    def plain(cls, ends: npt.NDArray[np.integer]) -> Paths:
        """Sequences that share nothing."""
        whole = ends.astype(np.int64)
        return cls(whole, np.arange(int(whole[-1])), whole)

    @classmethod
    def of(cls, forest: Forest, *, padding: int) -> Paths:
        """Rows that are a prefix of another have no path; `padding` tokens at the end are one."""
        starts = np.cumsum(forest.lengths) - forest.lengths
        adding = np.flatnonzero(forest.own)
        rows, own = forest.order[adding], forest.own[adding].tolist()
        paths = [forest.slots[starts[row] : starts[row] + forest.lengths[row]] for row in rows]
        if padding:
            paths.append(np.arange(forest.tokens, forest.tokens + padding))
            own.append(padding)
        lengths = [len(path) for path in paths]
        return cls(
            ends=np.concatenate(([0], np.cumsum(own))).astype(np.int64),
            keys=np.concatenate(paths),
            starts=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        )

    @property
    def positions(self) -> Indices:
        """[T] of each token of the packed row, its place in its path."""
        return self.places - np.repeat(self.starts[:-1], np.diff(self.ends))

    @property
    def places(self) -> Indices:
        """[T] of each token of the packed row, where in `keys` it is the end of what it sees."""
        own = np.diff(self.ends)
        return np.arange(self.ends[-1]) + np.repeat(self.starts[1:] - self.ends[1:], own)


@dataclass(frozen=True, slots=True)
class RunBlock:
    """Runs side by side: q queries and k keys each at most, padded on the right."""

    queries: Block
    keys: Tensor  # [rows * k] positions in the whole packed row
    mask: Tensor | None  # [rows, 1, q, k]; None: as many queries as keys, causal as ever


@dataclass(frozen=True, eq=False)
class Runs:
    """One rank's runs, in the order of its tokens."""

    query_ends: Indices  # [R + 1]
    key_begins: Indices  # [R] in the paths' keys
    key_ends: Indices  # [R]
    paths: Paths
    device: torch.device

    @classmethod
    def of(cls, paths: Paths, context: ContextRank, device: torch.device) -> Runs:
        queries, begins, ends = [], [], []
        for first, last in context.pieces(int(paths.ends[-1])):
            one = int(np.searchsorted(paths.ends, first, side="right")) - 1
            while one < len(paths.ends) - 1 and paths.ends[one] < last:
                end = min(last, int(paths.ends[one + 1]))
                queries.append(end - max(first, int(paths.ends[one])))
                begins.append(int(paths.starts[one]))
                ends.append(int(paths.starts[one + 1]) - (int(paths.ends[one + 1]) - end))
                one += 1
        return cls(
            np.concatenate(([0], np.cumsum(queries))).astype(np.int64),
            np.array(begins, np.int64),
            np.array(ends, np.int64),
            paths,
            device,
        )

    @cached_property
    def cumulative(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For kernels: int32 ends of queries and of keys [R + 1], the keys' positions, the longest of both."""
        lengths = self.key_ends - self.key_begins
        keys = [self.paths.keys[a:b] for a, b in zip(self.key_begins, self.key_ends, strict=True)]
        return (
            self._tensor(self.query_ends.astype(np.int32)),
            self._tensor(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)),
            self._tensor(np.concatenate(keys)),
            int(np.diff(self.query_ends).max()),
            int(lengths.max()),
        )

    @cached_property
    def blocks(self) -> tuple[RunBlock, ...]:
        """Runs of similar sizes together; those with as many keys as queries apart from the others."""
        queries, keys = np.diff(self.query_ends), self.key_ends - self.key_begins
        square = queries == keys

        def fit(members: list[int]) -> bool:
            q, k = queries[members], keys[members]
            return bool(
                q.min() >= shortest_beside(int(q.max()))
                and k.min() >= shortest_beside(int(k.max()))
                and len(members) * q.max() * k.max() <= BLOCK_SCORES
                and square[members].all() == square[members].any()
            )

        groups: list[list[int]] = []
        for run in np.lexsort((-queries, -keys, ~square)).tolist():
            if groups and fit([*groups[-1], run]):
                groups[-1].append(run)
            else:
                groups.append([run])
        return tuple(self._block(np.sort(members)) for members in groups)

    def _block(self, members: Indices) -> RunBlock:
        starts = self.query_ends[members]
        queries = self.query_ends[members + 1] - starts
        begins, lengths = self.key_begins[members], (self.key_ends - self.key_begins)[members]
        columns = np.arange(int(lengths.max()))
        slots = begins[:, None] + np.minimum(columns, lengths[:, None] - 1)
        mask = None
        if (queries != lengths).any():
            lines = np.arange(int(queries.max()))
            # A query of padding sees what the last real one does.
            seen = (lengths - queries)[:, None] + np.minimum(lines, queries[:, None] - 1)
            mask = self._tensor((columns <= seen[:, :, None])[:, None])
        return RunBlock(
            queries=Block.of(starts, queries, self.device),
            keys=self._tensor(self.paths.keys[slots].reshape(-1)),
            mask=mask,
        )

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
