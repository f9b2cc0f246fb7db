"""The paired test against brute force over sign patterns, the binomial, and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.evaluation import paired as paired_module
from rlframe.evaluation.paired import paired, permutation_p

QUARTERS = st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(QUARTERS)
def test_exact_p_is_the_share_of_sign_patterns_as_extreme(differences):
    observed = abs(sum(differences))
    patterns = list(itertools.product([-1, 1], repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(p, differences, strict=True))) for p in patterns]
    expected = sum(s >= observed for s in sums) / len(patterns)  # quarters add up exactly
    assert permutation_p(np.array(differences), np.random.default_rng(0)) == (expected, True)


def test_of_right_and_wrong_it_is_mcnemars_exact_test():
    better, worse = 11, 3
    d = np.array([1.0] * better + [-1.0] * worse + [0.0] * 30)
    tail = sum(math.comb(14, i) for i in range(worse + 1)) / 2**14
    assert permutation_p(d, np.random.default_rng(0))[0] == pytest.approx(2 * tail, abs=1e-15)


def test_beyond_the_exact_it_is_drawn_and_agrees(monkeypatch):
    d = np.random.default_rng(3).normal(0.2, 1.0, 18)
    exact, is_exact = permutation_p(d, np.random.default_rng(0))
    monkeypatch.setattr(paired_module, "EXACT_UP_TO", 5)
    drawn, drawn_is_exact = permutation_p(d, np.random.default_rng(0))
    assert (is_exact, drawn_is_exact) == (True, False)
    error = math.sqrt(exact * (1 - exact) / paired_module.DRAWS)
    assert abs(drawn - exact) < 5 * error


def test_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    a, b = rng.random(12), rng.random(12) + 0.1
    theirs = stats.permutation_test(
        (b, a), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert paired(a.tolist(), b.tolist()).p_value == pytest.approx(theirs.pvalue, abs=1e-12)


def test_what_is_said_of_two_results():
    found = paired([0.0, 0.5, 1.0, 0.0], [1.0, 0.5, 0.5, 1.0])
    assert (found.difference, found.tasks, found.better, found.worse) == (0.375, 4, 2, 1)
    assert found.low <= found.difference <= found.high
    assert found.exact


def test_the_same_twice_is_no_difference():
    found = paired([0.25, 1.0], [0.25, 1.0])
    assert (found.difference, found.p_value, found.low, found.high) == (0.0, 1.0, 0.0, 0.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(paired_module, "RESAMPLES", 2000)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        d = rng.choice([-1.0, 0.0, 1.0], size=40, p=[0.2, 0.4, 0.4])
        found = paired(np.zeros(40).tolist(), d.tolist())
        covered += found.low <= 0.2 <= found.high
    assert 86 <= covered <= 100  # binomial(100, 0.95): below 87 in one of a thousand


def test_what_can_not_be_paired_is_refused():
    with pytest.raises(ValueError, match="3 and 2 tasks"):
        paired([1.0] * 3, [1.0] * 2)
    with pytest.raises(ValueError, match="0 and 0"):
        paired([], [])
