"""Packing: nothing lost, the cap never exceeded, ranks balanced, as few micro-batches as can be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.model_costs.family import token_flops
from rlframe.model_costs.row_costs import RowCosts
from rlframe.model_shapes.dense import DenseShape
from rlframe.packing import aligned_bound, plan

QWEN = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip

lengths_strategy = st.lists(st.integers(1, 100), min_size=0, max_size=80)


@given(lengths_strategy, st.integers(1, 5), st.integers(100, 300), st.sampled_from([1, 2, 8]))
def test_every_row_once_under_the_cap_same_count_everywhere(lengths, ranks, cap, multiple):
    lengths = [min(n, cap - cap % multiple) for n in lengths]
    planned = plan(lengths, data_parallel=ranks, max_tokens=cap, multiple_of=multiple)
    assert planned.data_parallel_size == ranks
    rows = [r for rank in planned.micro_batches for m in rank for r in m]
    assert sorted(rows) == list(range(len(lengths)))
    assert len({len(rank) for rank in planned.micro_batches}) == 1
    for rank in planned.micro_batches:
        for micro_batch in rank:
            tokens = sum(lengths[r] for r in micro_batch)
            assert math.ceil(tokens / multiple) * multiple <= cap
    again = plan(lengths, data_parallel=ranks, max_tokens=cap, multiple_of=multiple)
    assert again == planned


@given(st.lists(st.integers(1, 100), min_size=1, max_size=200), st.integers(1, 8))
def test_ranks_are_balanced_to_one_row(lengths, ranks):
    planned = plan(lengths, data_parallel=ranks, max_tokens=1000)
    loads = [sum(lengths[r] for m in rank for r in m) for rank in planned.micro_batches]
    assert max(loads) - min(loads) <= max(lengths)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=100))
def test_micro_batches_are_few(lengths):
    """At most what best fit decreasing needs: 11/9 of the optimum + 4, which is at least sum / cap."""
    planned = plan(lengths, data_parallel=1, max_tokens=100)
    optimum_at_most = len(planned.micro_batches[0])
    assert optimum_at_most >= math.ceil(sum(lengths) / 100)
    halves = sum(n > 50 for n in lengths)
    lower = max(math.ceil(sum(lengths) / 100), halves)
    assert optimum_at_most <= 11 / 9 * (2 * lower) + 4
    small = [n for n in lengths if n <= 50]
    full = plan(small, data_parallel=1, max_tokens=100).micro_batches[0] if small else ()
    under_half = [m for m in full if sum(small[r] for r in m) < 50]
    assert len(under_half) <= 1, "two micro-batches that would fit into one"


def test_a_row_over_the_cap_is_named():
    with pytest.raises(ValueError, match="row 1 has 101 tokens, a micro-batch holds 96"):
        plan([5, 101], data_parallel=1, max_tokens=100, multiple_of=8)


def test_costs_decide_the_balance_not_lengths():
    planned = plan([10, 10, 10, 10], data_parallel=2, max_tokens=100, costs=[9, 3, 3, 3])
    sides = {tuple(sorted(r for m in rank for r in m)) for rank in planned.micro_batches}
    assert sides == {(0,), (1, 2, 3)}


def lognormal(count: int, seed: int, *, cap: int) -> list[int]:
    drawn = np.random.default_rng(seed).lognormal(np.log(2000), 1.0, count)
    return np.clip(drawn, 16, cap).astype(int).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "ranks"), [(512, 8), (4096, 64)])
@pytest.mark.parametrize("quadratic", [0.0, 1 / 24576])
def test_steps_are_balanced_at_the_aligned_bound(rows, ranks, seed, quadratic):
    """A row whose work alone is above a full micro-batch's mean is nobody's to balance: with
    quadratic work, one of the cap's length; so rows are at most half of it there."""
    cap = 32768
    lengths = lognormal(rows, seed, cap=cap // 2 if quadratic else cap)
    costs = [n + quadratic * n * n for n in lengths]
    planned = plan(lengths, data_parallel=ranks, max_tokens=cap, costs=costs)
    tokens = [[sum(lengths[r] for r in m) for m in rank] for rank in planned.micro_batches]
    assert max(max(rank) for rank in tokens) <= cap
    assert len(tokens[0]) == aligned_bound(lengths, data_parallel=ranks, cap=cap)
    work = np.array([[sum(costs[r] for r in m) for m in rank] for rank in planned.micro_batches])
    assert work.sum() / (ranks * work.max(axis=0).sum()) >= 0.95
    assert work.sum(axis=1).max() / work.sum(axis=1).mean() - 1 < 0.02


def test_context_parallel_ranks_share_a_packed_sequence():
    with pytest.raises(ValueError, match="context"):
        plan([150], data_parallel=1, max_tokens=100)
    planned = plan([150, 60, 40], data_parallel=1, max_tokens=100, context=2)
    assert planned.max_tokens == 200
    assert len(planned.micro_batches[0]) == 2


def test_costs_are_the_models_own():
    """Dense attention is quadratic in a row's length; GLM's sparse core is not, beyond its top k."""
    dense = RowCosts.of(DenseShape.from_hf(QWEN), longest=1 << 17)
    short, long = dense([1 << 16, 1 << 17])
    linear = token_flops(DenseShape.from_hf(QWEN), 1, averaged=True).linear
    quadratic = long - linear * (1 << 17), short - linear * (1 << 16)
    assert quadratic[0] / quadratic[1] == pytest.approx(4, rel=1e-2)
    between = dense([50_000])[0]
    exact = 50_000 * token_flops(DenseShape.from_hf(QWEN), 50_000, averaged=True).total
    assert between == pytest.approx(exact, rel=5e-3)
