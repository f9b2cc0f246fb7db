"""Figures of repeated attempts at tasks. Tasks are the sample; repeats of one task are not independent.

    scores = [[1.0, 0.0], [1.0, 1.0], [0.0]]     one row a task, one number an attempt that counts

All in float64; a task without an attempt that counts says nothing, and is left out of everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Scores = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks, and its standard error."""

    value: float
    standard_error: float
    """NaN for a single task: nothing is known of others."""
    tasks: int


def mean_over_tasks(values: Sequence[float]) -> Estimate:
    """Of one number a task. The standard error is that of drawing tasks: s / sqrt(N), s with N - 1."""
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.nan, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count)


def mean_score(scores: Scores) -> Estimate:
    """Mean over tasks of each task's mean, its error clustered by task.

    The attempts of a task share its difficulty: taken for independent, k of them would shrink the error by
    sqrt(k) where they may add nothing. With the same number of attempts at each task this is the plain mean,
    and the cluster-robust standard error (Miller 2024, "Adding Error Bars to Evals", eq. 4) times
    sqrt(N / (N - 1)).
    """
    return mean_over_tasks([math.fsum(task) / len(task) for task in scores if task])


def pass_at(k: int, scores: Scores, *, solved_from: float = 1.0) -> Estimate:
    """How likely at least one of k attempts at a task solves it: 1 - C(n - c, k) / C(n, k) of n attempts of
    which c did, unbiased for n >= k (Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    eq. 1), as a mean over the tasks that have k attempts."""
    counts = _counts(k, scores, solved_from)
    return mean_over_tasks([1.0 - _all_drawn(n - c, n, k) for n, c in counts])


def pass_hat(k: int, scores: Scores, *, solved_from: float = 1.0) -> Estimate:
    """How likely all of k attempts at a task solve it: C(c, k) / C(n, k), unbiased (Yao et al. 2024,
    "tau-bench", section 5)."""
    counts = _counts(k, scores, solved_from)
    return mean_over_tasks([_all_drawn(c, n, k) for n, c in counts])


def shown_ks(repeats: int) -> list[int]:
    """The k for which figures are given: powers of two up to `repeats`, and `repeats`."""
    powers = [1 << exponent for exponent in range(repeats.bit_length())]
    return sorted({*(k for k in powers if k <= repeats), repeats})


def _counts(k: int, scores: Scores, solved_from: float) -> list[tuple[int, int]]:
    """(attempts, solved) of the tasks that have k attempts."""
    if k < 1:
        raise ValueError(f"k={k} must be 1 or more")
    return [
        (len(task), sum(score >= solved_from for score in task))
        for task in scores
        if len(task) >= k
    ]


def _all_drawn(marked: int, total: int, k: int) -> float:
    """C(marked, k) / C(total, k): k draws without replacement are all among the marked ones. Exact
    integers, one division."""
    return math.comb(marked, k) / math.comb(total, k)
