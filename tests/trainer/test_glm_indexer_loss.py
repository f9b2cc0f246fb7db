"""The indexer's loss and its gradient against autograd in float64, against Megatron's, and over ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlframe.errors import RunError
from tests.trainer.glm_ranges import causal_ranges
from tests.trainer.spawn import run_ranks
from trainer.models.glm import tiles
from trainer.models.glm.indexer_loss import IndexerLoss, attach
from trainer.models.glm.key_selection import select_keys
from trainer.models.glm.tiles import Ids, Ranges, Selection

HEADS, INDEX_HEADS, INDEX_DIM, DIM, SCALE = 4, 3, 8, 12, 0.3


def index_outputs(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = ((tokens, INDEX_HEADS, INDEX_DIM), (tokens, INDEX_HEADS), (tokens, INDEX_DIM))
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes)


def attention(tokens: int, layers: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (
            torch.randn(tokens, HEADS, DIM, dtype=torch.float64, requires_grad=True),
            torch.randn(tokens, DIM, dtype=torch.float64, requires_grad=True),
        )
        for _ in range(layers)
    ]


def mask_of(selection: Selection, tokens: int) -> Tensor:
    if isinstance(selection, Ids):
        mask = torch.zeros(tokens, tokens + 1, dtype=torch.bool)
        return mask.scatter_(1, selection.ids.long() % (tokens + 1), True)[:, :tokens]
    columns = torch.arange(tokens)
    return (columns >= selection.first_rows[:, None]) & (columns <= selection.last_rows[:, None])


def loss_by_hand(
    index: tuple[Tensor, ...], layers: list[tuple[Tensor, Tensor]], mask: Tensor, weights: Tensor
) -> Tensor:
    """The equations as they stand: the mean of the served layers' KLs, less their constant spread."""
    queries, w, keys = index
    fired = torch.relu(torch.einsum("qhd,kd->qhk", queries, keys) * INDEX_DIM**-0.5)
    scores = torch.einsum("qh,qhk->qk", w, fired).masked_fill(~mask, float("-inf"))
    log_q = scores.log_softmax(-1).masked_fill(~mask, 0.0)
    targets = []
    for q, rows in layers:
        a = torch.einsum("qhd,kd->qhk", q.detach(), rows.detach()) * SCALE
        targets.append(a.masked_fill(~mask[:, None], float("-inf")).softmax(-1).sum(1) / HEADS)
    mean = torch.stack(targets).mean(0)
    return (weights[:, None] * (torch.xlogy(mean, mean) - mean * log_q)).sum()


def selection_of(
    stage: str, index: tuple[Tensor, ...], lengths: list[int], top_k: int
) -> Selection:
    first, last = causal_ranges(lengths)
    if stage == "dense":
        return Ranges(first, last)
    return Ids(select_keys(*index, first_rows=first, last_rows=last, top_k=top_k))


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=5),
    top_k=st.integers(1, 60),
    stage=st.sampled_from(["dense", "sparse"]),
    served=st.integers(1, 3),
    dense_width=st.sampled_from([0, 4]),
    budget=st.sampled_from([1, 1 << 10, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_value_and_gradient_are_those_of_the_equations(
    lengths: list[int],
    top_k: int,
    stage: str,
    served: int,
    dense_width: int,
    budget: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    tokens = sum(lengths)
    index, layers = index_outputs(tokens), attention(tokens, served)
    selection = selection_of(stage, index, lengths, top_k)
    token_weights = torch.rand(tokens, dtype=torch.float64)
    expected = loss_by_hand(index, layers, mask_of(selection, tokens), token_weights)
    wanted = torch.autograd.grad(expected, index)
    loss = IndexerLoss(*index, selection=selection, token_weights=token_weights, served=served)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "DENSE_WIDTH", dense_width)
        patch.setitem(tiles.MAX_TILE, "cpu", budget)
        for q, rows in layers:
            assert not loss.complete
            loss.add(q, rows, scale=SCALE)
    assert loss.divergence is not None
    torch.testing.assert_close(loss.divergence, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.take_gradients(), wanted, rtol=0, atol=1e-10)


def test_only_the_indexer_learns_and_the_scale_of_the_other_loss_does_not_matter() -> None:
    torch.manual_seed(0)
    index, layers = index_outputs(20), attention(20, 1)
    (q, rows), output = layers[0], torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    first, last = causal_ranges([20])
    loss = IndexerLoss(
        *index, selection=Ranges(first, last), token_weights=torch.full((20,), 0.05).double()
    )
    loss.add(q, rows, scale=SCALE)
    twin = IndexerLoss(
        *index, selection=Ranges(first, last), token_weights=torch.full((20,), 0.05).double()
    )
    twin.add(q, rows, scale=SCALE)
    attached = attach(output, *index, loss=loss)
    assert torch.equal(attached, output)
    (1e6 * attached.sum()).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(output.grad, torch.full_like(output, 1e6))  # type: ignore[arg-type]
    assert q.grad is None
    assert rows.grad is None
    torch.testing.assert_close(tuple(x.grad for x in index), twin.take_gradients())


def test_recompute_finds_what_the_first_pass_left() -> None:
    """A checkpointed owner runs twice; a served layer behind it has reported before the replay."""
    torch.manual_seed(0)
    parameter = torch.randn(INDEX_DIM, INDEX_DIM, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(20, INDEX_DIM, dtype=torch.float64)
    queries, weights, _ = (x.detach() for x in index_outputs(20))
    layers = attention(20, 2)
    first, last = causal_ranges([20])
    token_weights = torch.full((20,), 0.05).double()

    def run(keep: dict[str, IndexerLoss], recompute: bool) -> Tensor:
        def owner(x: Tensor) -> Tensor:
            keys = inputs @ parameter
            if "loss" not in keep:
                keep["loss"] = IndexerLoss(
                    queries,
                    weights,
                    keys,
                    selection=Ranges(first, last),
                    token_weights=token_weights,
                    served=2,
                )
            keep["loss"].add(*layers[0], scale=SCALE)
            return attach(x * 2, queries, weights, keys, loss=keep["loss"])

        x = torch.ones(20, dtype=torch.float64, requires_grad=True)
        if recompute:
            x = torch.utils.checkpoint.checkpoint(owner, x, use_reentrant=True)  # type: ignore[attr-defined]
        else:
            x = owner(x)
        keep["loss"].add(*layers[1], scale=SCALE)
        (gradient,) = torch.autograd.grad(x.sum(), parameter) if not recompute else (None,)
        if recompute:
            x.sum().backward()  # type: ignore[no-untyped-call]
            assert parameter.grad is not None
            gradient = parameter.grad
        assert gradient is not None
        return gradient

    plain = run({}, recompute=False)
    assert plain.abs().max() > 0
    torch.testing.assert_close(run({}, recompute=True), plain, rtol=0, atol=0)


def test_a_missing_layer_is_said() -> None:
    index, layers = index_outputs(5), attention(5, 1)
    first, last = causal_ranges([5])
    loss = IndexerLoss(*index, selection=Ranges(first, last), token_weights=torch.ones(5), served=2)
    loss.add(*layers[0], scale=SCALE)
    with pytest.raises(RunError, match="serves 2 layers has seen 1"):
        loss.take_gradients()


@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_one_sequence_agrees_with_megatron(stage: str) -> None:
    """megatron-core 0.16.1's own loss, which knows one unpacked sequence, [T, T] at once, 1e-10 in the log."""
    from megatron.core.transformer.experimental_attention_variant.dsa import (
        compute_dsa_indexer_loss,
    )

    torch.manual_seed(0)
    tokens, top_k = 40, 40 if stage == "dense" else 8
    index = tuple(x.float().detach().requires_grad_() for x in index_outputs(tokens))
    ((q, rows),) = ((q.float(), r.float()) for q, r in attention(tokens, 1))
    selection = selection_of(stage, index, [tokens], top_k)
    queries, w, keys = index
    fired = torch.relu(torch.einsum("qhd,kd->qhk", queries, keys) * INDEX_DIM**-0.5)
    scores = torch.einsum("qh,qhk->qk", w, fired)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, float("-inf"))
    # Its top-k pads with future rows, which the causal mask hides; ours with -1. Ties go our way.
    chosen = scores.topk(top_k).indices if stage == "dense" else selection.ids.long()  # type: ignore[union-attr]
    chosen = torch.where(chosen < 0, tokens - 1, chosen)
    theirs: Any = compute_dsa_indexer_loss(
        scores[None].clone(),
        chosen[None],
        q[:, None],
        rows[:, None, None].expand(-1, -1, HEADS, -1),
        SCALE,
        0.7,
        stage == "sparse",
        SimpleNamespace(tp=SimpleNamespace(size=lambda: 1)),
    )
    wanted = torch.autograd.grad(theirs, index)
    loss = IndexerLoss(
        *index, selection=selection, token_weights=torch.full((tokens,), 0.7 / tokens)
    )
    loss.add(q, rows, scale=SCALE)
    assert loss.divergence is not None
    torch.testing.assert_close(loss.divergence, theirs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss.take_gradients(), wanted, rtol=0, atol=1e-6)


def half_of_the_heads(rank: int, world_size: int, init_method: str) -> list[float]:
    """|difference| to the loss of all heads: of the value, then of each gradient."""
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    index, layers = index_outputs(50), attention(50, 2)
    selection = selection_of("sparse", index, [7, 43], 9)

    def gradients(heads: slice, group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
        weights = torch.full((50,), 0.02)
        loss = IndexerLoss(
            *index, selection=selection, token_weights=weights, served=2, group=group
        )
        for q, rows in layers:
            loss.add(q[:, heads], rows, scale=SCALE)
        assert loss.divergence is not None
        return loss.divergence, *loss.take_gradients()

    whole = gradients(slice(0, HEADS), None)
    mine = gradients(slice(rank * HEADS // 2, (rank + 1) * HEADS // 2), dist.group.WORLD)
    return [float((a - b).abs().max()) for a, b in zip(mine, whole, strict=True)]


def test_heads_split_over_two_ranks_give_the_whole_loss_on_each() -> None:
    for differences in run_ranks(half_of_the_heads, 2):
        assert max(differences) < 1e-12
