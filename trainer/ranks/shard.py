"""Rows as flat columns: what travels from the driver to a data-parallel rank, and back.

A shard holds the rows of one data-parallel rank end to end, in the order of its micro-batches, so
that a rank takes a micro-batch as one slice of each column and nobody loops over tokens.

Example: rows of 3, 2 and 4 tokens, micro-batches ((2, 0), (1,)) on this rank:
`lengths` [4, 3, 2], `rows_per_micro_batch` (2, 1), columns of 9 values: row 2, row 0, row 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlframe.types import BatchPlan, Float32Array, Int32Array, TrainRow

Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class RowShard:
    """N rows of T tokens together."""

    lengths: Int32Array  # [N] tokens of each row
    rows_per_micro_batch: tuple[int, ...]
    columns: Mapping[str, Column]  # each [T]; `token_ids` is always there

    def micro_batches(self) -> Iterator[RowShard]:
        """One shard (of views) a micro-batch; one with no rows where the plan has an empty one."""
        row = token = 0
        for rows in self.rows_per_micro_batch:
            lengths = self.lengths[row : row + rows]
            end = token + int(lengths.sum())
            columns = {name: column[token:end] for name, column in self.columns.items()}
            yield RowShard(lengths, (rows,), columns)
            row, token = row + rows, end

    def token_rows(self) -> list[Int32Array]:
        """[N] arrays of token ids, views."""
        ends = np.cumsum(self.lengths)
        return np.split(self.columns["token_ids"], ends[:-1]) if len(ends) else []


def cut(rows: Sequence[TrainRow], plan: BatchPlan, columns: Sequence[str]) -> list[RowShard]:
    """One shard a data-parallel rank, with `token_ids` and the named fields of `TrainRow`.

    Raises ValueError unless the plan names every row exactly once and gives every rank the same
    number of micro-batches.
    """
    _check(plan, len(rows))
    return [_shard(rows, micro_batches, columns) for micro_batches in plan.micro_batches]


def _check(plan: BatchPlan, num_rows: int) -> None:
    named = sorted(r for rank in plan.micro_batches for batch in rank for r in batch)
    if named != list(range(num_rows)):
        raise ValueError(
            f"the plan names rows {named[:8]}... ({len(named)} in all); each of the {num_rows} rows "
            "must be named exactly once"
        )
    counts = {len(rank) for rank in plan.micro_batches}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every data-parallel rank needs the same micro-batches, not {counts}")


def _shard(
    rows: Sequence[TrainRow], micro_batches: Sequence[Sequence[int]], columns: Sequence[str]
) -> RowShard:
    chosen = [rows[r] for batch in micro_batches for r in batch]
    return RowShard(
        lengths=np.array([len(row.token_ids) for row in chosen], np.int32),
        rows_per_micro_batch=tuple(len(batch) for batch in micro_batches),
        columns={name: _column(chosen, name) for name in ("token_ids", *columns)},
    )


def _column(rows: Sequence[TrainRow], name: str) -> Column:
    if not rows:
        return np.zeros(0, np.float32)
    return np.concatenate([getattr(row, name) for row in rows])


def join(
    outputs: Sequence[Float32Array], rows: Sequence[TrainRow], plan: BatchPlan
) -> list[Float32Array]:
    """The inverse of `cut` for one result per token.

    `outputs[d]` is what data-parallel rank d computed for its shard, [T of the shard]; the answer has
    one array [T] a row, in the order of `rows`.
    """
    joined: dict[int, Float32Array] = {}
    for output, micro_batches in zip(outputs, plan.micro_batches, strict=True):
        order = [r for batch in micro_batches for r in batch]
        ends = np.cumsum([len(rows[r].token_ids) for r in order])
        pieces = np.split(output, ends[:-1]) if order else []
        joined.update(zip(order, pieces, strict=True))
    return [joined[r] for r in range(len(rows))]


def asked_tokens(shard: RowShard) -> npt.NDArray[np.intp]:
    """Indices of a micro-batch's tokens under `loss_mask`; all but each row's first without one."""
    if "loss_mask" in shard.columns:
        return np.flatnonzero(shard.columns["loss_mask"])
    wanted = np.ones(int(shard.lengths.sum()), dtype=bool)
    starts = np.cumsum(shard.lengths) - shard.lengths
    wanted[starts[shard.lengths > 0]] = False
    return np.flatnonzero(wanted)
