"""What several rows begin with, laid out once: the rows of a micro-batch as a forest.

In a causal model a token's state depends on nothing but the tokens up to it, so the states of a common
prefix are the same in every row that begins with it. Rows are sorted; each stands there from the first
token on that it does not have in common with the one before it. Of sorted rows none shares more with an
earlier one, so that every distinct prefix stands there exactly once.

Example: rows [1 2 3], [7], [1 2 4 5] are laid out as 1 2 3 | 4 5 | 7; `slots` [0 1 2, 5, 0 1 3 4] says
where each token of each row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlframe.types import Int32Array

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Forest:
    """N rows, L tokens of them together, T of which are laid out."""

    lengths: Indices  # [N] of the rows as they were given
    order: Indices  # [N] the rows as they are laid out
    shared: Indices  # [N] leading tokens that row order[i] has in common with row order[i - 1]; [0] is 0

    @classmethod
    def of(cls, rows: Sequence[Int32Array]) -> Forest:
        lengths = np.array([len(row) for row in rows], np.int64)
        order = lexicographic(rows)
        shared = np.zeros(len(rows), np.int64)
        for i in range(1, len(rows)):
            shared[i] = common_prefix(rows[order[i - 1]], rows[order[i]])
        return cls(lengths, order, shared)

    @property
    def tokens(self) -> int:
        """T: distinct prefixes of the rows."""
        return int(self.lengths.sum() - self.shared.sum())

    @property
    def own(self) -> Indices:
        """[N] tokens that row order[i] adds; 0 for one that is a prefix of another."""
        return self.lengths[self.order] - self.shared

    @cached_property
    def slots(self) -> Indices:
        """[L]: where each token is laid out, of the rows end to end as they were given."""
        starts = np.cumsum(self.lengths) - self.lengths
        slots = np.empty(int(self.lengths.sum()), np.int64)
        path, laid_out = np.zeros(0, np.int64), 0
        for row, shared, own in zip(self.order, self.shared, self.own, strict=True):
            path = np.concatenate((path[:shared], np.arange(laid_out, laid_out + own)))
            slots[starts[row] : starts[row] + len(path)] = path
            laid_out += int(own)
        return slots


def lexicographic(rows: Sequence[Int32Array]) -> Indices:
    """[N] the rows by their tokens; a row comes before those that it is a prefix of."""
    keys = [np.asarray(row).astype(">u4").tobytes() for row in rows]  # compared as memory
    return np.array(sorted(range(len(rows)), key=lambda row: (keys[row], row)), np.int64)


def common_prefix(a: Int32Array, b: Int32Array) -> int:
    """Leading tokens that both have."""
    shorter = min(len(a), len(b))
    differ = a[:shorter] != b[:shorter]
    return int(differ.argmax()) if differ.any() else shorter
