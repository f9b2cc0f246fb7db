"""Which rows a query reads: those of highest index score; equal scores go to the earlier position.

    I[t, s] = sum_j w[t, j] ReLU(index_dim^-0.5 qI[t, j] . kI[s])        (DeepSeek-V3.2, equation 1)

The rule for ties is the trainer's (`trainer.models.glm.key_selection`): ReLU makes scores of exactly 0 common.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rollout.engine.glm_cpu.layout import BatchLayout, Span

MOST_PRODUCTS = 1 << 24
"""Query-head-key products held at once, of one sequence."""


def choose_rows(
    queries: Tensor,  # [q, index_heads, index_dim] float32, rotated
    weights: Tensor,  # [q, index_heads] float32, times (index_heads * index_dim)^-0.5
    pool: Tensor,  # [pool rows, index_dim]: index keys by the KV pool's rows
    layout: BatchLayout,
    *,
    top_k: int,
) -> Tensor:
    """Positions in the query's own sequence, int32 [q, min(top_k, longest)]; -1 where there are fewer."""
    width = min(top_k, layout.longest)
    if layout.one_each:
        return _decode(queries, weights, pool, layout, width)
    chosen = torch.full((len(queries), width), -1, dtype=torch.int32)
    for span in layout.spans():
        _extend(queries, weights, pool, layout, span, chosen)
    return chosen


def _decode(
    queries: Tensor, weights: Tensor, pool: Tensor, layout: BatchLayout, width: int
) -> Tensor:
    """All sequences at once, padded to the longest."""
    positions = torch.arange(layout.longest)
    beyond = positions >= layout.lengths.unsqueeze(1)  # [q, longest]
    if width == layout.longest:
        return positions.to(torch.int32).expand(len(queries), -1).masked_fill(beyond, -1)
    keys = pool[layout.slots].float()  # [q, longest, index_dim]
    fired = torch.bmm(queries, keys.transpose(1, 2)).relu_()  # [q, index_heads, longest]
    scores = torch.bmm(weights.unsqueeze(1), fired).squeeze(1)
    return highest(scores.masked_fill_(beyond, float("-inf")), width)


def _extend(
    queries: Tensor, weights: Tensor, pool: Tensor, layout: BatchLayout, span: Span, chosen: Tensor
) -> None:
    """Writes one sequence's choices into `chosen`."""
    width = min(chosen.shape[1], span.length)
    positions = torch.arange(span.length)
    own = torch.arange(span.first_position, span.length).unsqueeze(1)  # [count, 1]
    if width == span.length:
        ids = positions.to(torch.int32).expand(span.count, -1).masked_fill(positions > own, -1)
        chosen[span.queries, :width] = ids
        return
    keys = pool[layout.slots[span.sequence, : span.length]].float()
    heads, dim = queries.shape[1:]
    step = max(1, MOST_PRODUCTS // (heads * span.length))
    for begin in range(0, span.count, step):
        end = min(begin + step, span.count)
        rows = slice(span.start + begin, span.start + end)
        fired = (queries[rows].reshape(-1, dim) @ keys.t()).relu_()
        summed = torch.bmm(weights[rows].unsqueeze(1), fired.view(end - begin, heads, -1))
        scores = summed.squeeze(1).masked_fill_(positions > own[begin:end], float("-inf"))
        chosen[rows, :width] = highest(scores, width)


def highest(scores: Tensor, count: int) -> Tensor:
    """Columns int32 [n, count] of the highest `scores` [n, width]; -1 for those that are -inf."""
    ordered = scores.sort(dim=1, descending=True, stable=True)
    columns = ordered.indices[:, :count].to(torch.int32)
    return columns.masked_fill_(ordered.values[:, :count] == float("-inf"), -1)
