"""Estimators against brute force over all draws, and against what they estimate."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.evaluation.estimators import mean_score, pass_at, pass_hat, shown_ks

SOLVED = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=7)
TASKS = st.lists(SOLVED, min_size=1, max_size=5)


def brute(scores, k, of):
    """Over every choice of k attempts of every task, exactly."""
    means = []
    for task in scores:
        if len(task) < k:
            continue
        draws = list(itertools.combinations(task, k))
        means.append(Fraction(sum(of(draw) for draw in draws), len(draws)))
    return float(sum(means) / len(means)) if means else math.nan


@given(TASKS, st.integers(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_one_that_solves(scores, k):
    found = pass_at(k, scores)
    expected = brute(scores, k, lambda draw: any(s == 1.0 for s in draw))
    assert found.tasks == sum(len(task) >= k for task in scores)
    assert found.value == pytest.approx(expected, abs=1e-15, nan_ok=True)


@given(TASKS, st.integers(1, 7))
def test_pass_hat_k_is_the_share_of_draws_that_all_solve(scores, k):
    expected = brute(scores, k, lambda draw: all(s == 1.0 for s in draw))
    assert pass_hat(k, scores).value == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_pass_at_k_against_its_product_form_in_float64():
    """Chen et al. compute 1 - prod(1 - k / i for i in n - c + 1 .. n)."""
    n, c, k = 200, 7, 100
    product = 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    assert pass_at(k, [[1.0] * c + [0.0] * (n - c)]).value == pytest.approx(product, abs=1e-14)


def test_pass_at_k_is_unbiased():
    """Over every outcome of 4 independent attempts at p = 0.3, weighted by its probability."""
    p, n, k = 0.3, 4, 2
    outcomes = list(itertools.product([0.0, 1.0], repeat=n))
    weights = [p ** sum(o) * (1 - p) ** (n - sum(o)) for o in outcomes]
    expected = sum(w * pass_at(k, [o]).value for o, w in zip(outcomes, weights, strict=True))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-15)
    expected = sum(w * pass_hat(k, [o]).value for o, w in zip(outcomes, weights, strict=True))
    assert expected == pytest.approx(p**k, abs=1e-15)


def test_solved_is_from_the_threshold_on():
    assert pass_at(1, [[0.5, 0.4]], solved_from=0.5).value == 0.5


@given(st.integers(2, 6), st.integers(1, 4), st.randoms())
def test_standard_error_is_the_cluster_robust_one(tasks, repeats, random):
    scores = np.array([[random.random() for _ in range(repeats)] for _ in range(tasks)])
    centred = scores - scores.mean()
    clustered = math.sqrt(float((centred.sum(axis=1) ** 2).sum())) / scores.size
    found = mean_score(scores.tolist())
    assert found.value == pytest.approx(scores.mean(), abs=1e-12)
    assert found.standard_error == pytest.approx(
        clustered * math.sqrt(tasks / (tasks - 1)), abs=1e-12
    )


def test_repeats_that_say_the_same_do_not_shrink_the_error():
    once = mean_score([[0.0], [1.0], [1.0]])
    thrice = mean_score([[0.0] * 3, [1.0] * 3, [1.0] * 3])
    assert once == thrice


def test_a_task_without_attempts_counts_for_nothing():
    assert mean_score([[1.0, 0.0], []]).value == 0.5
    assert mean_score([[1.0, 0.0], []]).tasks == 1
    assert math.isnan(mean_score([[]]).value)
    assert math.isnan(mean_score([[1.0]]).standard_error)


@pytest.mark.parametrize(("repeats", "ks"), [(1, [1]), (4, [1, 2, 4]), (5, [1, 2, 4, 5])])
def test_shown_ks(repeats, ks):
    assert shown_ks(repeats) == ks
