"""What teachers say about a batch, and what it is worth: pure functions over numpy.

The sampled reverse KL: at each action a_t the log ratio  log pi_old(a_t) - log pi_T(a_t)  is an unbiased estimate of
KL(pi_old || pi_T) at that state; its negative, times a coefficient, is an advantage, or a reward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlframe.credit import Credit
from rlframe.errors import RunError
from rlframe.types import BoolArray, Float32Array, Int32Array, TrainRow, Trajectory

MAX_LOG_RATIO = 20.0
"""A token that a teacher finds impossible is this bad, not infinitely bad."""


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """One teacher's scores of one trace of T tokens. A trace without actions has zeros."""

    teacher: str
    logprobs: (
        Float32Array | None
    )  # [T] of the trace's tokens; None where only the trainer's ranks will know
    top_ids: Int32Array | None = None  # [T, k]
    top_logprobs: Float32Array | None = None  # [T, k]
    error: str = ""
    """Why there are none: nobody may learn from this trace."""


def log_ratios(
    old_logprobs: Sequence[Float32Array], taught: Sequence[Taught], masks: Sequence[BoolArray]
) -> list[Float32Array]:
    """[T] a trace: log pi_old - log pi_T at actions, bounded; 0 elsewhere, and where there are no scores."""
    found = []
    for old, scores, mask in zip(old_logprobs, taught, masks, strict=True):
        if scores.logprobs is None or scores.error:
            found.append(np.zeros(len(old), np.float32))
            continue
        ratio = np.clip(old.astype(np.float64) - scores.logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        found.append(np.where(mask, ratio, 0.0).astype(np.float32))
    return found


def penalties(
    ratios: Sequence[Float32Array], weights: Sequence[float], *, coef: float
) -> list[Float32Array]:
    """[T] a trace: what each action earns for its divergence."""
    return [
        (-coef * weight * ratio).astype(np.float32)
        for ratio, weight in zip(ratios, weights, strict=True)
    ]


def with_penalties(credit: Credit, earned: Sequence[Float32Array]) -> Credit:
    """A_t - coef * log ratio; the critic's targets stay the task's."""
    added = [
        np.where(mask, a + p, 0.0).astype(np.float32)
        for a, p, mask in zip(credit.advantages, earned, credit.loss_masks, strict=True)
    ]
    return replace(credit, advantages=added)


def without_failures(credit: Credit, taught: Sequence[Taught]) -> Credit:
    """Traces that no teacher could score do not train. RunError where none is left."""
    masks = [
        mask & (not scores.error) for mask, scores in zip(credit.loss_masks, taught, strict=True)
    ]
    if not any(mask.any() for mask in masks):
        reason = next((scores.error for scores in taught if scores.error), "no action trains")
        raise RunError(f"no trace of the step was scored by a teacher: {reason}")
    return replace(credit, loss_masks=masks)


def weights_of(
    trajectories: Sequence[Trajectory], domain_weights: Mapping[str, float]
) -> list[float]:
    """One a trace, by the trajectory's domain."""
    return [
        float(domain_weights.get(trajectory.domain, 1.0))
        for trajectory in trajectories
        for _ in trajectory.traces
    ]


def taught_rows(
    rows: Sequence[TrainRow],
    taught: Sequence[Taught],
    weights: Sequence[float],
    *,
    indices: Mapping[str, int],
) -> list[TrainRow]:
    """The rows with what a divergence in the loss reads: candidates, or which teacher's weights to ask."""
    found = []
    for row, scores, weight in zip(rows, taught, weights, strict=True):
        length = len(row.token_ids)
        found.append(
            replace(
                row,
                teacher_logprobs=scores.logprobs,
                teacher_top_ids=scores.top_ids,
                teacher_top_logprobs=scores.top_logprobs,
                teacher_weights=np.full(length, weight, np.float32),
                teacher_index=np.full(length, indices[scores.teacher], np.int32)
                if scores.teacher in indices
                else None,
            )
        )
    return found


def divergence_by_domain(
    trajectories: Sequence[Trajectory], ratios: Sequence[Float32Array], taught: Sequence[Taught]
) -> dict[str, float]:
    """Mean log ratio over actions: over all (`mean`) and over each domain by its name; empty without scores."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    each = iter(zip(ratios, taught, strict=True))
    for trajectory in trajectories:
        for trace in trajectory.traces:
            ratio, scores = next(each)
            if scores.logprobs is None or scores.error:
                continue
            for name in ("mean", trajectory.domain):
                sums[name] += float(ratio[trace.loss_mask].sum(dtype=np.float64))
                counts[name] += trace.actions
    return {name: sums[name] / counts[name] for name in sorted(sums) if counts[name]}
