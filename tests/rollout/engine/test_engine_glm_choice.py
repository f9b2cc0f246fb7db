"""The CPU engine's choice of rows and its attention: the trainer's choice, and a plain float64 form."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rollout.engine.glm_cpu.choice import choose_rows
from rollout.engine.glm_cpu.layout import BatchLayout
from rollout.engine.glm_cpu.sparse import attend
from trainer.models.glm.key_selection import select_keys

HEADS, DIM = 4, 16


@st.composite
def batches(draw: st.DrawFn) -> tuple[BatchLayout, int, int]:
    """Sequences anywhere in a pool, with all or some of their tokens new; top_k; a seed."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    decoding = draw(st.booleans())
    counts = tuple(1 if decoding else draw(st.integers(1, n)) for n in lengths)
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(sum(lengths) + 7, generator=generator)
    slots = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    start = 0
    for sequence, length in enumerate(lengths):
        slots[sequence, :length] = rows[start : start + length]
        start += length
    return BatchLayout(slots, torch.tensor(lengths), counts), draw(st.integers(1, 50)), seed


def material(layout: BatchLayout, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small whole numbers: products are exact in any order, and many scores are equal."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*size: int) -> torch.Tensor:
        return torch.randint(-1, 2, size, generator=generator).float()

    queries = sum(layout.counts)
    pool = whole(int(layout.slots.max()) + 8, DIM)
    return whole(queries, HEADS, DIM), whole(queries, HEADS), pool


@given(batches())
def test_the_rows_are_those_that_the_trainer_chooses(drawn: tuple[BatchLayout, int, int]) -> None:
    layout, top_k, seed = drawn
    queries, weights, pool = material(layout, seed)
    scale = 0.25  # a power of two: exact
    chosen = choose_rows(queries, weights * scale, pool, layout, top_k=top_k)
    for span in layout.spans():
        keys = pool[layout.slots[span.sequence, : span.length]]
        expected = select_keys(
            queries[span.queries],
            weights[span.queries],
            keys,
            first_rows=torch.zeros(span.count, dtype=torch.long),
            last_rows=torch.arange(span.first_position, span.length),
            top_k=top_k,
        )
        ours = [{i for i in row if i >= 0} for row in chosen[span.queries].tolist()]
        theirs = [{i for i in row if i >= 0} for row in expected.tolist()]
        assert ours == theirs


@given(batches())
def test_attention_over_chosen_rows(drawn: tuple[BatchLayout, int, int]) -> None:
    layout, top_k, seed = drawn
    generator = torch.Generator().manual_seed(seed)
    queries, weights, index_pool = material(layout, seed)
    ids = choose_rows(queries, weights, index_pool, layout, top_k=top_k)
    q = torch.randn(len(queries), HEADS, 12, generator=generator)
    pool = torch.randn(len(index_pool), 12, generator=generator)
    out = attend(q, pool, ids, layout, scale=0.3, value_dim=8)
    for span in layout.spans():
        for token in range(span.start, span.start + span.count):
            chosen = [i for i in ids[token].tolist() if i >= 0]
            held = pool[layout.slots[span.sequence][chosen]].double()
            p = (0.3 * q[token].double() @ held.t()).softmax(-1)
            torch.testing.assert_close(out[token].double(), p @ held[:, :8], atol=1e-5, rtol=0)
