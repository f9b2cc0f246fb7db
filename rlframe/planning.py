"""Which micro-batch of which rank a role computes each row in: `packing` with what the role's layout fixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rlframe import packing, shared_packing
from rlframe.types import BatchPlan, TrainRow

Costs = Callable[[Sequence[int]], Sequence[float]]
"""The work of rows of so many tokens."""


def plan_rows(
    rows: Sequence[TrainRow],
    layout: Mapping[str, int],
    *,
    max_tokens: int,
    row_costs: Costs = list,
    share_prefixes: bool = False,
) -> BatchPlan:
    """`layout` is `RoleTrainer.layout()`: its context-parallel ranks hold `max_tokens` each, padding to
    `multiple_of` included. ValueError for a row that is longer."""
    data_parallel, context = layout["data"], layout.get("context", 1)
    multiple_of = layout.get("multiple_of", 1)
    ids = [row.token_ids for row in rows]
    if share_prefixes:
        return shared_packing.plan(
            ids,
            data_parallel=data_parallel,
            max_tokens=max_tokens,
            row_costs=row_costs,
            multiple_of=multiple_of,
            context=context,
        )
    lengths = [len(row) for row in ids]
    return packing.plan(
        lengths,
        data_parallel=data_parallel,
        max_tokens=max_tokens,
        costs=row_costs(lengths),
        multiple_of=multiple_of,
        context=context,
    )
