"""Packing of rows whose common prefixes are computed once: rows that begin alike stay together, if it pays.

Sorted rows that share much are *units* that `rlframe.packing` deals like rows. How large a unit may be is
tried out: large ones save the most tokens, small ones are easier to balance, and single rows are packing
without sharing. The plan that is done first by the estimated work is taken, so that sharing never
makes a step longer. What two units of a micro-batch have in common counts twice against the cap, though it
is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlframe import packing
from rlframe.prefixes import Forest, Indices
from rlframe.types import BatchPlan, Int32Array

Costs = Callable[[Sequence[int]], Sequence[float]]
"""The work of rows of so many tokens; of a row's first n tokens as of a row of n."""
UNIT_SHARES = (1.0, 0.5, 0.25, 0.125)
"""A unit's tokens at most, as a share of the cap."""


def plan(
    rows: Sequence[Int32Array],
    *,
    data_parallel: int,
    max_tokens: int,
    row_costs: Costs,
    multiple_of: int = 1,
    context: int = 1,
) -> BatchPlan:
    """As `packing.plan`, of token ids. Raises ValueError naming the first row that is longer than the cap."""
    sizes = {"data_parallel": data_parallel, "max_tokens": max_tokens}
    sizes |= {"multiple_of": multiple_of, "context": context}
    lengths = [len(row) for row in rows]
    apart = packing.plan(lengths, costs=row_costs(lengths), **sizes)
    trunk = _Trunk.of(rows, row_costs)
    best, best_time = apart, trunk.lock_step(apart)
    for share in UNIT_SHARES if len(rows) else ():
        units = trunk.units(int(share * apart.max_tokens))
        tokens, costs = zip(*map(trunk.size, units), strict=True)
        by_unit = packing.plan(tokens, costs=costs, **sizes)
        found = _expand(by_unit, [trunk.order[unit] for unit in units])
        if (time := trunk.lock_step(found)) < best_time:
            best, best_time = found, time
    return best


def shared_share(rows: Sequence[Int32Array], made: BatchPlan) -> float:
    """Of all tokens, the share that a plan computes with another row's."""
    total = sum(len(row) for row in rows)
    laid_out = sum(
        Forest.of([rows[r] for r in batch]).tokens for rank in made.micro_batches for batch in rank
    )
    return 1.0 - laid_out / total if total else 0.0


def step_time(rows: Sequence[Int32Array], made: BatchPlan, row_costs: Costs) -> float:
    """Work until all ranks are done, where they wait for each other after every micro-batch."""
    return _Trunk.of(rows, row_costs).lock_step(made)


def _expand(by_unit: BatchPlan, rows_of: Sequence[Indices]) -> BatchPlan:
    """Units back to their rows."""
    return BatchPlan(
        tuple(
            tuple(tuple(sorted(int(r) for u in batch for r in rows_of[u])) for batch in rank)
            for rank in by_unit.micro_batches
        ),
        by_unit.max_tokens,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Trunk:
    """All rows, sorted; index i below is a place in `order`."""

    order: Indices  # [N]
    place: Indices  # [N] the inverse
    lengths: Indices  # [N] of row order[i]
    shared: Indices  # [N] with row order[i - 1]
    costs: npt.NDArray[np.float64]  # [N] of row order[i]
    row_costs: Costs

    @classmethod
    def of(cls, rows: Sequence[Int32Array], row_costs: Costs) -> _Trunk:
        forest = Forest.of(rows)
        lengths = forest.lengths[forest.order]
        return cls(
            order=forest.order,
            place=np.argsort(forest.order),
            lengths=lengths,
            shared=forest.shared,
            costs=np.array(row_costs(lengths.tolist()), np.float64),
            row_costs=row_costs,
        )

    def size(self, members: Indices) -> tuple[int, float]:
        """Tokens and work of a forest of the rows `members` (ascending): each row's, less those of the first
        tokens that the one before it has too."""
        again = self._shared_within(members)
        again = again[again > 0]
        saved = sum(self.row_costs(again.tolist())) if len(again) else 0.0
        tokens = int(self.lengths[members].sum() - again.sum())
        return tokens, float(self.costs[members].sum()) - saved

    def lock_step(self, made: BatchPlan) -> float:
        """As `step_time`."""
        work = [
            [self.size(np.sort(self.place[list(batch)]))[1] if batch else 0.0 for batch in rank]
            for rank in made.micro_batches
        ]
        return float(np.max(work, axis=0).sum())

    def units(self, limit: int) -> list[Indices]:
        """Neighbours that share something, cut where they share least until each has `limit` tokens or
        is a single row."""
        found, waiting = [], [(0, len(self.order))] if len(self.order) else []
        tokens = np.concatenate(([0], np.cumsum(self.lengths - self.shared)))
        while waiting:
            first, end = waiting.pop()
            shared = self.shared[first + 1 : end]
            laid_out = tokens[end] - tokens[first] + self.shared[first]
            if end - first == 1 or (shared.min() > 0 and laid_out <= limit):
                found.append(np.arange(first, end))
                continue
            cuts = np.flatnonzero(shared == shared.min()) + first + 1
            cut = int(cuts[np.abs(cuts - (first + end) / 2).argmin()])
            waiting += [(first, cut), (cut, end)]
        return found

    def _shared_within(self, members: Indices) -> Indices:
        """[n - 1]: what each row of `members` but the first has in common with the one before it there."""
        if len(members) < 2:
            return np.zeros(0, np.int64)
        # Of sorted rows, the least that neighbours between them share.
        ends = members[1:] + 1
        stops = np.stack((members[:-1] + 1, ends), axis=1).ravel()
        padded = np.append(self.shared, 0)
        least: Indices = np.minimum.reduceat(padded, stops)[::2]
        return least
