"""Latent attention of every query over its own chosen rows, forward and backward in blocks of queries.

    o[t, h] = sum_{s in T_t} softmax_s(scale q[t, h] . row[s]) row[s][:value_dim]

Absorbed form: all heads read the same rows [latent | rotated key], the values are their first part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.models.glm.tiles import Ids, Ranges, Tile, add_product, product, softmax_dtype


def sparse_attention(
    queries: Tensor,  # [q, heads, latent + rope], absorbed
    rows: Tensor,  # [k, latent + rope]
    ids: Tensor,  # [q, top_k] integer rows, each at most once a query; negative: none
    *,
    scale: float,
    value_dim: int,
) -> Tensor:  # [q, heads, value_dim]
    """Softmax in float32 (float64 of float64 inputs); a query without rows gives zeros.

    Differentiable in `queries` and `rows`; keeps its inputs and one number a query and head (the
    logarithm of the softmax's denominator) for the backward pass, which computes the scores again.
    """
    out: Tensor = _LatentAttention.apply(queries, rows, scale, value_dim, Ids, ids)  # type: ignore[no-untyped-call]
    return out


def dense_attention(
    queries: Tensor,  # [q, heads, latent + rope], absorbed
    rows: Tensor,  # [k, latent + rope]
    *,
    first_rows: Tensor,  # [q]: first row that a query reads
    last_rows: Tensor,  # [q]: the last one, included
    scale: float,
    value_dim: int,
) -> Tensor:  # [q, heads, value_dim]
    """The same over every row in range (the indexer's warm-up stage); memory stays linear in tokens."""
    out: Tensor = _LatentAttention.apply(  # type: ignore[no-untyped-call]
        queries, rows, scale, value_dim, Ranges, first_rows, last_rows
    )
    return out


def tile_scores(tile: Tile, queries: Tensor, taken: Tensor, scale: float) -> Tensor:
    """scale q . row of one tile, [blocks, size, heads, width] in the softmax's dtype; -inf off the mask."""
    q = queries[tile.queries].reshape(tile.blocks, -1, queries.shape[-1])
    scores = product(q, taken.transpose(1, 2), scale=scale)
    scores = scores.view(tile.blocks, tile.size, -1, taken.shape[1])
    return scores.masked_fill_(~tile.mask.unsqueeze(2), float("-inf"))


class _LatentAttention(torch.autograd.Function):
    """P = exp(S - log_sum); dP = dO V^T; dS = P (dP - sum(P dP)); dq = dS row; drow = dS^T q + P^T dO."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        rows: Tensor,
        scale: float,
        value_dim: int,
        kind: type[Ids | Ranges],
        *selection: Tensor,
    ) -> Tensor:
        heads, dtype = queries.shape[1], softmax_dtype(queries)
        out = queries.new_empty(*queries.shape[:2], value_dim)
        log_sums = queries.new_empty(queries.shape[:2], dtype=dtype)
        for tile in kind(*selection).tiles(heads=heads, dim=rows.shape[1]):
            taken = tile.take(rows)
            p = tile_scores(tile, queries, taken, scale)
            # Where nothing is allowed all scores are -inf: the finite top keeps them from being NaN.
            top = p.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
            total = p.sub_(top).exp_().sum(-1, keepdim=True).clamp_(min=1e-30)
            attended = product(p.flatten(1, 2), taken[..., :value_dim])
            out[tile.queries] = (attended.view(*total.shape[:3], -1) / total).view(
                -1, heads, value_dim
            )
            log_sums[tile.queries] = (top + total.log()).view(-1, heads)
        ctx.save_for_backward(queries, rows, log_sums, *selection)
        ctx.scale, ctx.value_dim, ctx.kind = scale, value_dim, kind
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, rows, log_sums, *selection = ctx.saved_tensors
        heads, dtype = queries.shape[1], softmax_dtype(queries)
        d_queries = torch.empty_like(queries)
        d_rows = torch.zeros(rows.shape, dtype=dtype, device=rows.device)
        for tile in ctx.kind(*selection).tiles(heads=heads, dim=rows.shape[1]):
            taken = tile.take(rows)
            p = tile_scores(tile, queries, taken, ctx.scale)
            p = p.sub_(log_sums[tile.queries].view(*p.shape[:3], 1)).exp_().flatten(1, 2)
            d_out = grads[0][tile.queries].reshape(tile.blocks, -1, ctx.value_dim)
            d_p = product(d_out, taken[..., : ctx.value_dim].transpose(1, 2))
            d_scores = d_p.sub_((p * d_p).sum(-1, keepdim=True)).mul_(p)
            d_queries[tile.queries] = product(d_scores, taken, scale=ctx.scale).view(
                -1, heads, rows.shape[1]
            )
            q = queries[tile.queries].reshape(tile.blocks, -1, rows.shape[1])
            d_taken = product(d_scores.transpose(1, 2), q, scale=ctx.scale)
            add_product(d_taken[..., : ctx.value_dim], p.transpose(1, 2), d_out)
            tile.add(d_rows, d_taken)
        return d_queries, d_rows.to(rows.dtype), None, None, None, *(None for _ in selection)
