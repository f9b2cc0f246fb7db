"""Packing with shared prefixes: every row once, the cap by what is laid out, never a longer step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe import packing, shared_packing
from rlframe.prefixes import Forest

CAP = 40


def quadratic(lengths):
    return [10.0 * n + n * n for n in lengths]


@st.composite
def batches(draw):
    """Rows that begin with one of a few prompts, or with an earlier row."""
    rows = []
    for _ in range(draw(st.integers(1, 24))):
        start = draw(st.sampled_from(rows)) if rows and draw(st.booleans()) else []
        start = start[: draw(st.integers(0, len(start)))] if start else []
        rows.append((start + draw(st.lists(st.integers(0, 2), max_size=20)))[:CAP])
    return [np.array(row, np.int32) for row in rows]


def tokens_of(rows, batch):
    return len({tuple(rows[r][: n + 1]) for r in batch for n in range(len(rows[r]))})


def time_of(rows, made):
    """Lock-step time by brute force: a distinct prefix of n tokens costs f(n) - f(n - 1)."""

    def work(batch):
        prefixes = {tuple(rows[r][: n + 1]) for r in batch for n in range(len(rows[r]))}
        return sum(quadratic([len(p)])[0] - quadratic([len(p) - 1])[0] for p in prefixes)

    return np.max([[work(b) for b in rank] for rank in made.micro_batches], axis=0).sum()


@given(batches(), st.integers(1, 4), st.sampled_from([1, 8]))
def test_every_row_once_under_the_cap_and_never_slower(rows, ranks, multiple):
    sizes = {"data_parallel": ranks, "max_tokens": CAP, "multiple_of": multiple}
    made = shared_packing.plan(rows, row_costs=quadratic, **sizes)
    named = sorted(r for rank in made.micro_batches for batch in rank for r in batch)
    assert named == list(range(len(rows)))
    assert len({len(rank) for rank in made.micro_batches}) == 1
    for rank in made.micro_batches:
        for batch in rank:
            assert -(-tokens_of(rows, batch) // multiple) * multiple <= CAP
    lengths = [len(row) for row in rows]
    apart = packing.plan(lengths, costs=quadratic(lengths), **sizes)
    assert time_of(rows, made) <= time_of(rows, apart) * (1 + 1e-9)
    total = sum(lengths)
    laid_out = sum(tokens_of(rows, b) for rank in made.micro_batches for b in rank)
    share = shared_packing.shared_share(rows, made)
    assert share == pytest.approx(1 - laid_out / total if total else 0.0)


def test_siblings_of_a_long_prompt_take_one_micro_batch():
    prompt = list(range(100))
    rows = [np.array([*prompt, 200 + k, 300 + k], np.int32) for k in range(8)]
    made = shared_packing.plan(rows, data_parallel=1, max_tokens=120, row_costs=quadratic)
    assert made.micro_batches == ((tuple(range(8)),),)
    assert shared_packing.shared_share(rows, made) == pytest.approx(700 / 816)
    lengths = [len(row) for row in rows]
    assert len(packing.plan(lengths, data_parallel=1, max_tokens=120).micro_batches[0]) == 8


def test_two_ranks_share_the_work_of_one_family():
    """A prompt that is twice computed beats a rank that waits."""
    prompt = [7] * 4
    rows = [np.array([*prompt, *([k] * 30)], np.int32) for k in range(6)]
    made = shared_packing.plan(rows, data_parallel=2, max_tokens=1000, row_costs=quadratic)
    assert [len(rank[0]) for rank in made.micro_batches] == [3, 3]


def test_a_row_over_the_cap_is_named():
    rows = [np.zeros(5, np.int32), np.zeros(CAP + 1, np.int32)]
    with pytest.raises(ValueError, match="row 1 has 41 tokens"):
        shared_packing.plan(rows, data_parallel=1, max_tokens=CAP, row_costs=quadratic)


@given(batches(), st.data())
def test_what_rows_apart_in_the_order_share(rows, data):
    trunk = shared_packing._Trunk.of(rows, quadratic)
    members = np.array(
        sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))), np.int64
    )
    chosen = [rows[trunk.order[i]] for i in members]
    assert trunk.size(members)[0] == Forest.of(chosen).tokens
