"""Trajectories to trainer rows: flatten traces, put credit on them, split into mini-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np

from rlframe.credit import Credit
from rlframe.loss_weights import WeightRules, weights
from rlframe.types import BoolArray, Float32Array, Trace, TrainRow, Trajectory


def flatten(trajectories: Sequence[Trajectory]) -> list[Trace]:
    """All traces, trajectory by trajectory, in their order there."""
    return [trace for trajectory in trajectories for trace in trajectory.traces]


def unflatten(
    arrays: Sequence[Float32Array], trajectories: Sequence[Trajectory]
) -> list[list[Float32Array]]:
    """The inverse of `flatten` for per-trace arrays."""
    remaining = iter(arrays)
    return [[next(remaining) for _ in trajectory.traces] for trajectory in trajectories]


def bare_rows(traces: Sequence[Trace]) -> list[TrainRow]:
    """Rows without credit, for forward passes (`logprobs`, `values`)."""
    return [
        TrainRow(
            token_ids=trace.token_ids,
            loss_mask=trace.loss_mask,
            advantages=(zero := np.zeros(len(trace), np.float32)),
            returns=zero,
            old_logprobs=zero,
            old_values=zero,
            rollout_logprobs=trace.rollout_logprobs,
        )
        for trace in traces
    ]


def with_credit(
    rows: Sequence[TrainRow],
    credit: Credit,
    *,
    old_logprobs: Sequence[Float32Array],
    old_values: Sequence[Float32Array],
    ref_logprobs: Sequence[Float32Array] | None = None,
) -> list[TrainRow]:
    """The rows that an update takes; what the credit leaves out does not train."""
    credited = zip(
        rows,
        credit.loss_masks,
        credit.advantages,
        credit.returns,
        old_logprobs,
        old_values,
        ref_logprobs if ref_logprobs is not None else repeat(None, len(rows)),
        strict=True,
    )
    return [
        replace(
            row,
            loss_mask=m,
            advantages=a,
            returns=r,
            old_logprobs=p,
            old_values=v,
            ref_logprobs=reference,
        )
        for row, m, a, r, p, v, reference in credited
    ]


def weighted(
    trajectories: Sequence[Trajectory],
    rows: Sequence[TrainRow],
    kept: Sequence[BoolArray],
    indices: Sequence[int],
    rules: WeightRules,
) -> list[TrainRow]:
    """The rows `indices` (whole trajectories, in order) with their weights in the policy's loss."""
    part = [rows[i] for i in indices]
    if rules.are_plain:
        return part
    chosen, starts = set(indices), np.cumsum([0, *(len(t.traces) for t in trajectories)])
    own = [t for t, start in zip(trajectories, starts, strict=False) if start in chosen]
    each = weights(
        own,
        [row.loss_mask for row in part],
        [kept[i] for i in indices],
        aggregation=rules.aggregation,
    )
    return [replace(row, loss_weights=w) for row, w in zip(part, each, strict=True)]


def mini_batches(
    trajectories: Sequence[Trajectory], count: int, *, rng: np.random.Generator
) -> list[list[int]]:
    """Row indices of each mini-batch; all traces of one trajectory stay together.

    With one mini-batch the order is untouched; otherwise trajectories are shuffled by `rng`.
    """
    starts = np.cumsum([0, *(len(t.traces) for t in trajectories)])
    order = np.arange(len(trajectories))
    if count > 1:
        rng.shuffle(order)
    return [
        [row for t in sorted(part) for row in range(starts[t], starts[t + 1])]
        for part in np.array_split(order, count)
        if len(part)
    ]
