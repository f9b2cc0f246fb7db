"""Forests of rows against a trie made by hand: every distinct prefix once, and every token on its path."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlframe.prefixes import Forest, common_prefix

rows_strategy = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 255, 256, 2**31 - 1]), max_size=9), max_size=12
).map(lambda rows: [np.array(row, np.int32) for row in rows])


@given(rows_strategy)
def test_every_distinct_prefix_is_laid_out_once(rows):
    forest = Forest.of(rows)
    prefixes = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    assert forest.tokens == len(prefixes)
    place = {}
    slots = iter(forest.slots.tolist())
    for row in rows:
        for n in range(1, len(row) + 1):
            slot = next(slots)
            assert place.setdefault(tuple(row[:n]), slot) == slot, "one place a prefix"
    assert sorted(place.values()) == list(range(forest.tokens)), "and no place for two"


@given(rows_strategy)
def test_a_row_s_own_tokens_stand_together_in_order(rows):
    """What packed attention relies on: a row ends with its own tokens, which are one piece."""
    forest = Forest.of(rows)
    assert forest.shared[:1].sum() == 0
    starts = np.cumsum(forest.lengths) - forest.lengths
    begin = 0
    for row, shared, own in zip(forest.order, forest.shared, forest.own, strict=True):
        path = forest.slots[starts[row] : starts[row] + forest.lengths[row]]
        np.testing.assert_array_equal(path[shared:], np.arange(begin, begin + own))
        assert (np.diff(path) > 0).all()
        begin += own


def test_the_example():
    forest = Forest.of([np.array(row, np.int32) for row in ([1, 2, 3], [7], [1, 2, 4, 5])])
    assert forest.slots.tolist() == [0, 1, 2, 5, 0, 1, 3, 4]
    assert forest.tokens == 6


def test_common_prefix():
    a = np.array([5, 6, 7], np.int32)
    assert common_prefix(a, a) == 3
    assert common_prefix(a, a[:2]) == 2
    assert common_prefix(a, np.array([5, 9, 7], np.int32)) == 1
    assert common_prefix(a, a[:0]) == 0
