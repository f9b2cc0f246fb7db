"""Attention over shared prefixes and over a part of the row, against one row after the other in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.prefixes import Forest
from trainer.models.context import ContextRank
from trainer.models.packed import PackedBatch

HEADS, KV_HEADS, DIM = 4, 2, 8


@st.composite
def token_rows(draw: Any) -> list[np.ndarray[Any, Any]]:
    """Rows over few tokens, some of which begin with an earlier one."""
    rows: list[list[int]] = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.sampled_from(rows)) if rows and draw(st.booleans()) else []
        own = draw(st.lists(st.integers(0, 1), min_size=0 if start else 1, max_size=40))
        rows.append(start[: draw(st.integers(0, len(start)))] + own or [0])
    return [np.array(row, np.int32) for row in rows]


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As many queries as there are, at the end of the keys."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1 + len(k) - len(q))
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)


def inputs(tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, h, DIM, generator=generator) for h in (HEADS, KV_HEADS, KV_HEADS)]


def row_by_row(
    forest: Forest, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> list[torch.Tensor]:
    """Each row whole, its tokens taken from where they are laid out."""
    paths = torch.from_numpy(forest.slots).split(forest.lengths.tolist())
    return [causal(q[path], k[path], v[path]) for path in paths]


@settings(max_examples=60, deadline=None)
@given(token_rows(), st.sampled_from([1, 2, 3]))
def test_what_every_rank_computes_is_what_each_row_computes(
    rows: list[np.ndarray[Any, Any]], size: int
) -> None:
    from trainer.models.packed_attention import causal_attention

    forest = Forest.of(rows)
    parts = [
        PackedBatch.from_rows(rows, context=ContextRank(rank, size), forest=forest)
        for rank in range(size)
    ]
    total = len(parts[0].token_ids) * size
    ours = [x.requires_grad_() for x in inputs(total)]
    out = torch.zeros(total, HEADS, DIM)
    for part in parts:
        own = causal_attention(ours[0][part.rows], *ours[1:], part, scale=None)
        out = out.index_copy(0, part.rows, own)
    exact = [x.detach().double().requires_grad_() for x in ours]
    paths = torch.from_numpy(forest.slots).split(forest.lengths.tolist())
    weights = torch.randn(forest.tokens, HEADS, DIM, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(forest.tokens, HEADS, DIM, dtype=torch.float64)
    for path, row in zip(paths, row_by_row(forest, *exact), strict=True):
        expected = expected.index_copy(0, path, row)
    torch.testing.assert_close(out[: forest.tokens].double(), expected, atol=1e-5, rtol=1e-5)
    # A shared token's gradient is counted once on both sides: later rows overwrite equal outputs.
    (out[: forest.tokens] * weights).sum().backward()
    (expected * weights).sum().backward()
    for given_, wanted in zip(ours, exact, strict=True):
        assert given_.grad is not None
        assert wanted.grad is not None
        torch.testing.assert_close(given_.grad.double(), wanted.grad, atol=2e-5, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(token_rows(), st.sampled_from([1, 2]))
def test_what_a_kernel_gets(rows: list[np.ndarray[Any, Any]], size: int) -> None:
    """Run by run, causal from the end, over the keys that are put together for it."""
    from trainer.models.packed_attention import causal_attention

    forest = Forest.of(rows)
    for rank in range(size):
        part = PackedBatch.from_rows(rows, context=ContextRank(rank, size), forest=forest)
        q, k, v = inputs(len(part.token_ids) * size)
        assert part.runs is not None
        ends, key_ends, keys, longest, longest_keys = part.runs.cumulative
        sizes, key_sizes = ends.diff().tolist(), key_ends.diff().tolist()
        assert (max(sizes), max(key_sizes)) == (longest, longest_keys)
        runs = zip(
            q[part.rows].split(sizes),
            k[keys].split(key_sizes),
            v[keys].split(key_sizes),
            strict=True,
        )
        by_run = torch.cat([causal(*run) for run in runs])
        own = causal_attention(q[part.rows], k, v, part, scale=None)
        torch.testing.assert_close(by_run, own, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(token_rows(), st.sampled_from([1, 2]), st.sampled_from([1, 4]))
def test_where_a_token_looks(rows: list[np.ndarray[Any, Any]], size: int, multiple: int) -> None:
    """Positions go on from the prefix, and the range of the paths' keys is the row up to the token."""
    forest = Forest.of(rows)
    starts = np.cumsum(forest.lengths) - forest.lengths
    for rank in range(size):
        context = ContextRank(rank, size)
        packed = PackedBatch.from_rows(rows, multiple_of=multiple, context=context, forest=forest)
        assert packed.path_keys is not None
        first, last = packed.key_range
        seen = {
            int(row): packed.path_keys[a : b + 1].tolist()
            for row, a, b in zip(packed.rows, first, last, strict=True)
        }
        positions = dict(zip(packed.rows.tolist(), packed.positions.tolist(), strict=True))
        for row, start in zip(rows, starts, strict=True):
            path = forest.slots[start : start + len(row)].tolist()
            for t, slot in enumerate(path):
                if slot in seen:
                    assert seen[slot] == path[: t + 1]
                    assert positions[slot] == t
        assert packed.max_length >= max(map(len, rows))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_flash_attention_is_aligned_at_the_end() -> None:
    """What `_varlen` relies on where a run has fewer queries than keys."""
    from trainer.models.packed_attention import causal_attention

    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 50, 300, dtype=np.int32)
    rows = [np.concatenate((prompt, rng.integers(0, 50, n, dtype=np.int32))) for n in (5, 80, 33)]
    forest = Forest.of(rows)
    packed = PackedBatch.from_rows(rows, forest=forest, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(forest.tokens, h, 64, device="cuda", generator=generator)
        for h in (HEADS, KV_HEADS, KV_HEADS)
    )
    exact = causal_attention(q, k, v, packed, scale=None)
    flash = causal_attention(*(x.bfloat16() for x in (q, k, v)), packed, scale=None)
    torch.testing.assert_close(flash.float(), exact, atol=3e-2, rtol=3e-2)
