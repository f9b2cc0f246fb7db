"""The indexer's choice against a choice by hand, row by row; ties; what it must not depend on."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlframe.errors import RunError
from tests.trainer.glm_ranges import causal_ranges
from trainer.models.glm.key_selection import index_scores, select_keys
from trainer.models.glm.windows import Window, range_windows

LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=6)


def chosen_by_hand(scores: Tensor, first: Tensor, last: Tensor, top_k: int) -> Tensor:
    ids = []
    for row, low, high in zip(scores.tolist(), first.tolist(), last.tolist(), strict=True):
        best = sorted(range(low, high + 1), key=lambda s: (-row[s], s))[:top_k]
        ids.append(sorted(best) + [-1] * (top_k - len(best)))
    return torch.tensor(ids)


def scores_by_hand(queries: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """The equation as it stands, in float64, rounded once."""
    products = torch.einsum("qhd,kd->qhk", queries.double(), keys.double())
    fired = torch.relu(products * queries.shape[2] ** -0.5)
    return torch.einsum("qh,qhk->qk", weights.double(), fired).float()


@settings(deadline=None, max_examples=40)
@given(
    lengths=LENGTHS,
    top_k=st.integers(1, 40),
    heads=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_whole_numbers_choose_as_by_hand_with_many_ties(
    lengths: list[int], top_k: int, heads: int, seed: int
) -> None:
    """Products of small integers are exact, so the scores are, and most of them are equal."""
    torch.manual_seed(seed)
    first, last = causal_ranges(lengths)
    tokens = len(last)
    queries = torch.randint(-1, 2, (tokens, heads, 4)).float()
    keys = torch.randint(-1, 2, (tokens, 4)).float()
    weights = torch.randint(-1, 2, (tokens, heads)).float()
    ids = select_keys(queries, weights, keys, first_rows=first, last_rows=last, top_k=top_k)
    assert ids.dtype == torch.int32
    expected = chosen_by_hand(scores_by_hand(queries, weights, keys), first, last, top_k)
    assert torch.equal(ids, expected.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_scores_choose_as_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first, last = causal_ranges([1, 300, 7, 64, 513])
    tokens = len(last)
    queries = torch.randn(tokens, 32, 16).to(dtype)
    keys, weights = torch.randn(tokens, 16).to(dtype), torch.randn(tokens, 32).to(dtype)
    ids = select_keys(queries, weights, keys, first_rows=first, last_rows=last, top_k=48)
    expected = chosen_by_hand(scores_by_hand(queries, weights, keys), first, last, 48)
    assert torch.equal(ids, expected.int())


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, cut=st.integers(1, 149), seed=st.integers(0, 99))
def test_a_choice_does_not_depend_on_what_else_is_computed(
    lengths: list[int], cut: int, seed: int
) -> None:
    """One sequence among others, or alone; its queries all at once, or split over two ranks."""
    torch.manual_seed(seed)
    first, last = causal_ranges(lengths)
    tokens = len(last)
    queries, keys = torch.randn(tokens, 8, 24), torch.randn(tokens, 24)
    weights = torch.randn(tokens, 8)
    ids = select_keys(queries, weights, keys, first_rows=first, last_rows=last, top_k=9)
    for start, length in zip(accumulate([0, *lengths]), lengths, strict=False):
        for at, end in ((0, min(cut, length)), (min(cut, length), length)):
            rows = slice(start + at, start + end)
            alone = select_keys(
                queries[rows],
                weights[rows],
                keys[start : start + length],
                first_rows=torch.zeros(end - at, dtype=torch.int64),
                last_rows=torch.arange(at, end),
                top_k=9,
            )
            assert torch.equal(torch.where(alone < 0, -1, alone + start), ids[rows])


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_score_is_the_same_to_the_bit_in_every_window(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 9)))
    heads, dim = data.draw(st.sampled_from([(32, 128), (4, 16), (8, 24)]))
    q, k = data.draw(st.integers(2, 130)), data.draw(st.integers(2, 1500))
    queries, keys, weights = torch.randn(q, heads, dim), torch.randn(k, dim), torch.randn(q, heads)
    whole = index_scores(queries, weights, keys, Window(0, q, (0,), k))[0]
    first, row = data.draw(st.integers(0, q - 1)), data.draw(st.integers(0, k - 1))
    size, width = data.draw(st.integers(1, q - first)), data.draw(st.integers(1, k - row))
    part = index_scores(queries, weights, keys, Window(first, size, (row,), width))[0]
    assert torch.equal(part, whole[first : first + size, row : row + width])
    halves = index_scores(queries, weights, keys, Window(0, q // 2, (0, row), width))
    assert torch.equal(halves[0], whole[: q // 2, :width])
    assert torch.equal(halves[1], whole[q // 2 : q // 2 * 2, row : row + width])


def test_negative_zero_ties_with_zero() -> None:
    """A negative weight on a head that does not fire gives -0."""
    ids = select_keys(
        torch.ones(1, 1, 1),
        -torch.ones(1, 1),
        torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]]),
        first_rows=torch.tensor([0]),
        last_rows=torch.tensor([3]),
        top_k=2,
    )
    assert ids.tolist() == [[1, 2]]


def test_an_empty_range_and_a_short_one() -> None:
    ids = select_keys(
        torch.ones(3, 1, 1),
        torch.ones(3, 1),
        torch.ones(5, 1),
        first_rows=torch.tensor([2, 1, 0]),
        last_rows=torch.tensor([1, 2, 4]),
        top_k=3,
    )
    assert ids.tolist() == [[-1, -1, -1], [1, 2, -1], [0, 1, 2]]


def test_a_score_that_is_not_a_number_is_said() -> None:
    keys = torch.ones(9, 2)
    keys[4] = float("nan")
    first, last = causal_ranges([9])
    with pytest.raises(RunError, match="not numbers"):
        select_keys(
            torch.ones(9, 1, 2), torch.ones(9, 1), keys, first_rows=first, last_rows=last, top_k=3
        )


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, heads=st.sampled_from([1, 64, 1 << 16, 1 << 19]))
def test_windows_cover_every_query_once_and_all_of_its_rows(lengths: list[int], heads: int) -> None:
    first, last = causal_ranges(lengths)
    seen = 0
    for window in range_windows(first, last, heads=heads):
        assert window.queries.start == seen
        seen = window.queries.stop
        counts = window.in_range(first, last).sum(2).flatten()
        assert torch.equal(counts, (last - first + 1)[window.queries])
        scores = window.blocks * window.size * window.width * heads
        assert scores <= 1 << 20 or window.blocks * window.size == 1
    assert seen == len(last)
