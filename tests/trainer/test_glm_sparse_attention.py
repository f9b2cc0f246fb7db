"""Sparse attention, values and gradients, against attention under an explicit mask in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.glm_ranges import causal_ranges
from trainer.models.glm import tiles
from trainer.models.glm.sparse_attention import dense_attention, sparse_attention

LATENT, ROPE = 8, 4


def by_hand(queries: Tensor, rows: Tensor, ids: Tensor, scale: float) -> Tensor:
    allowed = torch.zeros(len(queries), len(rows) + 1, dtype=torch.bool)
    allowed.scatter_(1, torch.where(ids < 0, len(rows), ids).long(), True)
    scores = torch.einsum("qhd,kd->qhk", queries, rows) * scale
    scores = scores.masked_fill(~allowed[:, None, :-1], float("-inf"))
    return torch.einsum("qhk,kd->qhd", scores.softmax(-1).nan_to_num(0.0), rows[:, :LATENT])


def random_ids(lengths: list[int], top_k: int) -> Tensor:
    """Up to top_k rows of each causal range in any order, -1 anywhere between them."""
    first, last = causal_ranges(lengths)
    ids = []
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        chosen = low + torch.randperm(high - low + 1)[: int(torch.randint(0, top_k + 1, ()))]
        padded = torch.cat((chosen, torch.full((top_k - len(chosen),), -1)))
        ids.append(padded[torch.randperm(top_k)])
    return torch.stack(ids).int()


def inputs(tokens: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    dim = LATENT + ROPE
    queries = torch.randn(tokens, heads, dim, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(tokens, dim, dtype=torch.float64, requires_grad=True)
    return queries, rows, torch.randn(tokens, heads, LATENT, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    heads=st.sampled_from([1, 3]),
    top_k=st.integers(1, 200),
    dense_width=st.sampled_from([0, 1, 4, 1000]),
    budget=st.sampled_from([1, 1 << 10, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_on_packed_sequences(
    lengths: list[int], heads: int, top_k: int, dense_width: int, budget: int, seed: int
) -> None:
    """Whole windows or gathered rows, large tiles or single queries; -1 among the ids, and nothing else."""
    torch.manual_seed(seed)
    ids = random_ids(lengths, top_k)
    queries, rows, d_out = inputs(len(ids), heads)
    expected = by_hand(queries, rows, ids, 0.3)
    wanted = torch.autograd.grad(expected, (queries, rows), d_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "DENSE_WIDTH", dense_width)
        patch.setitem(tiles.MAX_TILE, "cpu", budget)
        out = sparse_attention(queries, rows, ids, scale=0.3, value_dim=LATENT)
        got = torch.autograd.grad(out, (queries, rows), d_out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    ids = random_ids([1, 4, 9], 5)
    queries, rows, _ = inputs(len(ids), 2)

    def attend(q: Tensor, r: Tensor) -> Tensor:
        return sparse_attention(q, r, ids, scale=0.3, value_dim=LATENT)

    assert torch.autograd.gradcheck(attend, (queries, rows))


def test_top_k_beyond_the_sequence_is_dense_causal_attention() -> None:
    torch.manual_seed(0)
    queries, rows, _ = inputs(40, 4)
    ids = torch.arange(64).expand(40, 64)
    ids = torch.where(ids > torch.arange(40)[:, None], -1, ids).int()
    out = sparse_attention(queries, rows, ids, scale=0.3, value_dim=LATENT)
    keys = rows.expand(4, -1, -1)
    dense = torch.nn.functional.scaled_dot_product_attention(
        queries.transpose(0, 1), keys, keys[..., :LATENT], is_causal=True, scale=0.3
    )
    torch.testing.assert_close(out, dense.transpose(0, 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("dense_width", [0, 4])
def test_narrow_inputs_round_only_at_the_end(
    dtype: torch.dtype, tolerance: float, dense_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "DENSE_WIDTH", dense_width)
    torch.manual_seed(0)
    ids = random_ids([1, 80, 130], 24)
    wide_q, wide_r, d_out = inputs(len(ids), 3)
    queries, rows = (x.detach().to(dtype).requires_grad_() for x in (wide_q, wide_r))
    out = sparse_attention(queries, rows, ids, scale=0.3, value_dim=LATENT)
    assert out.dtype == dtype
    got = torch.autograd.grad(out, (queries, rows), d_out.to(dtype))
    exact_q, exact_r = queries.detach().double(), rows.detach().double()
    exact_q.requires_grad_(), exact_r.requires_grad_()
    expected = by_hand(exact_q, exact_r, ids, 0.3)
    wanted = torch.autograd.grad(expected, (exact_q, exact_r), d_out.to(dtype).double())
    for ours, exact in zip((out, *got), (expected, *wanted), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    budget=st.sampled_from([1, 1 << 10, 1 << 20]),
)
def test_dense_attention_reads_every_row_in_range(lengths: list[int], budget: int) -> None:
    torch.manual_seed(0)
    first, last = causal_ranges(lengths)
    queries, rows, d_out = inputs(len(last), 2)
    columns = torch.arange(len(last))
    ids = torch.where((columns >= first[:, None]) & (columns <= last[:, None]), columns, -1)
    expected = by_hand(queries, rows, ids, 0.3)
    wanted = torch.autograd.grad(expected, (queries, rows), d_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiles.MAX_TILE, "cpu", budget)
        out = dense_attention(
            queries, rows, first_rows=first, last_rows=last, scale=0.3, value_dim=LATENT
        )
        got = torch.autograd.grad(out, (queries, rows), d_out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
