"""Absorbed latent attention over chosen rows of the KV pool, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from rollout.engine.glm_cpu.layout import BatchLayout, Span

MOST_GATHERED = 1 << 24
"""Numbers of gathered rows held at once, of one sequence."""


def attend(
    queries: Tensor,  # [q, heads, latent + rope]
    pool: Tensor,  # [pool rows, latent + rope]
    ids: Tensor,  # [q, width]: positions in the query's own sequence, -1: none
    layout: BatchLayout,
    *,
    scale: float,
    value_dim: int,
) -> Tensor:
    """[q, heads, value_dim]: softmax(scale * q . row) over the chosen rows, times their first `value_dim`."""
    out = queries.new_empty(len(queries), queries.shape[1], value_dim)
    if layout.one_each:
        rows = torch.gather(layout.slots, 1, ids.long().clamp(min=0))
        out.copy_(_weighted(queries, pool[rows], ids, scale, value_dim))
        return out
    for span in layout.spans():
        _extend(queries, pool, ids, layout, span, out, scale)
    return out


def _extend(
    queries: Tensor,
    pool: Tensor,
    ids: Tensor,
    layout: BatchLayout,
    span: Span,
    out: Tensor,
    scale: float,
) -> None:
    held = pool[layout.slots[span.sequence, : span.length]]
    width = min(ids.shape[1], span.length)
    step = max(1, MOST_GATHERED // (width * pool.shape[1]))
    for begin in range(span.start, span.start + span.count, step):
        here = slice(begin, min(begin + step, span.start + span.count))
        chosen = ids[here, :width]
        rows = held[chosen.long().clamp(min=0)]  # [queries, width, latent + rope]
        out[here] = _weighted(queries[here], rows, chosen, scale, out.shape[2])


def _weighted(queries: Tensor, rows: Tensor, ids: Tensor, scale: float, value_dim: int) -> Tensor:
    """[q, heads, value_dim] in float32, of gathered rows [q, width, latent + rope]."""
    rows = rows.float()
    logits = torch.bmm(queries.float(), rows.transpose(1, 2)).mul_(scale)  # [q, heads, width]
    logits.masked_fill_((ids < 0).unsqueeze(1), float("-inf"))
    return torch.bmm(logits.softmax(-1), rows[..., :value_dim])
