"""Two results on the same tasks: is the difference of their means more than luck?

Tasks are paired, so that a hard task is hard for both and does not count as noise. The test asks: if the
two were the same, each task's difference would be as likely with the other sign; how many of the
sign patterns give a sum at least as far from zero as the one seen? (Fisher's randomization test.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXACT_UP_TO = 20
"""So many tasks that differ: all sign patterns (1,048,576) are counted. Beyond, `DRAWS` of them."""
DRAWS = 100_000
RESAMPLES = 20_000
CHUNK = 1 << 14
TOLERANCE = 1e-9
"""Relative to the sum of all differences: what differs by less is a tie, and round-off."""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """b - a over the tasks of both."""

    difference: float
    low: float
    high: float
    """95% interval by the bootstrap over tasks (percentiles)."""
    p_value: float
    """Two-sided, of the permutation test."""
    exact: bool
    """Every sign pattern was counted; else drawn, and the p-value has a standard error of its own."""
    tasks: int
    better: int
    worse: int


def paired(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Paired:
    """One number a task, in the same order. ValueError where there are none, or not as many."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} tasks can't be paired")
    differences: Float64Array = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    low, high = _interval(differences, np.random.default_rng(seed))
    p_value, exact = permutation_p(differences, np.random.default_rng(seed + 1))
    return Paired(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        exact=exact,
        tasks=len(differences),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
    )


def permutation_p(differences: Float64Array, rng: np.random.Generator) -> tuple[float, bool]:
    """Two-sided p-value, and whether it is exact. Tasks without a difference change no sum: left out."""
    moved: Float64Array = differences[differences != 0.0]
    if not moved.size:
        return 1.0, True
    observed = abs(float(moved.sum()))
    least = observed - TOLERANCE * float(np.abs(moved).sum())
    if moved.size <= EXACT_UP_TO:
        patterns = 1 << moved.size
        extreme = sum(
            int((np.abs(_signs_of(start, moved.size, patterns) @ moved) >= least).sum())
            for start in range(0, patterns, CHUNK)
        )
        return extreme / patterns, True
    extreme = 0
    for start in range(0, DRAWS, CHUNK):
        count = min(CHUNK, DRAWS - start)
        signs = rng.integers(0, 2, (count, moved.size)) * 2.0 - 1.0
        extreme += int((np.abs(signs @ moved) >= least).sum())
    # The pattern seen counts as drawn, or p could be 0 (Phipson and Smyth 2010).
    return (extreme + 1) / (DRAWS + 1), False


def _signs_of(start: int, width: int, patterns: int) -> Float64Array:
    """[up to CHUNK, width] of +1 and -1: the bits of `start`, `start` + 1, ..."""
    numbers = np.arange(start, min(start + CHUNK, patterns), dtype=np.int64)
    bits = (numbers[:, None] >> np.arange(width)) & 1
    return (2 * bits - 1).astype(np.float64)


def _interval(differences: Float64Array, rng: np.random.Generator) -> tuple[float, float]:
    count = len(differences)
    means = np.empty(RESAMPLES)
    rows = max(1, (1 << 22) // count)
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, count, (min(rows, RESAMPLES - start), count))
        means[start : start + rows] = differences[drawn].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
