"""Plans by a role's layout: a row longer than one rank holds is split, padding counts, a longer one is named."""

import numpy as np
import pytest

from rlframe.batch import bare_rows
from rlframe.config.schema import LayoutConfig
from rlframe.planning import plan_rows
from rlframe.types import NO_VERSION, Trace


def rows(*lengths):
    return bare_rows(
        [
            Trace(
                np.full(n, k, np.int32),
                np.arange(n) > 0,
                np.zeros(n, np.float32),
                np.full(n, NO_VERSION, np.int32),
            )
            for k, n in enumerate(lengths)
        ]
    )


def layout_of(layout: LayoutConfig) -> dict[str, int]:
    """As `RoleTrainer.layout()` says it."""
    return {
        "data": layout.data,
        "context": layout.context,
        "multiple_of": layout.multiple_of,
    }


@pytest.mark.parametrize("share", [False, True])
def test_a_row_over_the_cap_needs_context_parallel_ranks(share):
    long = rows(18, 3)
    with pytest.raises(ValueError, match=r"row 0 has 18 tokens.*layout\.context"):
        plan_rows(long, layout_of(LayoutConfig()), max_tokens=10, share_prefixes=share)
    made = plan_rows(long, layout_of(LayoutConfig(context=2)), max_tokens=10, share_prefixes=share)
    assert sorted(made.micro_batches[0]) == [(0,), (1,)]
    assert made.max_tokens == LayoutConfig(context=2).capacity(10) == 20


@pytest.mark.parametrize(
    ("layout", "multiple", "capacity"),
    [
        (LayoutConfig(), 1, 30),
        (LayoutConfig(tensor=4), 1, 30),
        (LayoutConfig(tensor=4, sequence_parallel=True), 4, 28),
        (LayoutConfig(context=2), 4, 60),
        (LayoutConfig(tensor=4, sequence_parallel=True, context=2), 16, 48),
    ],
)
def test_the_cap_holds_with_padding(layout, multiple, capacity):
    assert (layout.multiple_of, layout.capacity(30)) == (multiple, capacity)
    parts = rows(*[7] * 20)
    made = plan_rows(parts, layout_of(layout), max_tokens=30)
    for batch in made.micro_batches[0]:
        tokens = sum(len(parts[r].token_ids) for r in batch)
        padded = -(-tokens // multiple) * multiple
        assert padded // layout.context <= 30
