"""The lightning indexer's choice: for each query the `top_k` rows of highest score, computed in blocks.

    I[t, s] = sum_j w[t, j] ReLU(index_dim^-0.5 qI[t, j] . kI[s])        (DeepSeek-V3.2, equation 1)

Which rows are chosen is a function of the scores alone: scores that are equal in float32 go to the lower
row. ReLU makes such ties common: a score is exactly 0 where no head fires, however the products were
blocked. And a score does not depend on what it was computed with: keys are multiplied in multiples of
`ALIGNED_ROWS`, so that a matrix product has no odd edge, which it would sum in another order. So on a CPU
the ids are the same to the bit for every packing, blocking and split of the queries over ranks (the tests
check it); on CUDA the order is the library's, and rows within its rounding of the last place may change.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rlframe.errors import RunError
from trainer.models.glm.tiles import product, softmax_dtype
from trainer.models.glm.windows import Window, range_windows

CHUNK_ROWS = 1024
"""Keys multiplied at once, of a window."""
ALIGNED_ROWS = 16


@torch.no_grad()
def select_keys(
    queries: Tensor,  # [q, index_heads, index_dim], rotated
    weights: Tensor,  # [q, index_heads], already times index_heads^-0.5
    keys: Tensor,  # [k, index_dim], normalised and rotated
    *,
    first_rows: Tensor,  # [q]: first row in keys that a query may read
    last_rows: Tensor,  # [q]: the last one, included
    top_k: int,
) -> Tensor:
    """ids int32 [q, top_k]: ascending rows of `keys`, then -1 where fewer than `top_k` are in range.

    An empty range (last < first) gives only -1. Where everything in range fits, nothing is computed.
    Memory: the ids, and one tile. Raises RunError if a score that decides is not a number.
    """
    first, last = first_rows.to(torch.int32), last_rows.to(torch.int32)
    ids = first.unsqueeze(1) + torch.arange(top_k, dtype=torch.int32, device=first.device)
    ids.masked_fill_(ids > last.unsqueeze(1), -1)
    crowded = last - first >= top_k
    if not bool(crowded.any()):
        return ids
    heads = queries.shape[1]
    for window in range_windows(first, last, heads=heads, max_width=CHUNK_ROWS):
        choosing = crowded[window.queries]
        if window.width <= top_k or not bool(choosing.any()):
            continue
        scores = index_scores(queries, weights, keys, window)
        scores.masked_fill_(~window.in_range(first, last), float("-inf"))
        chosen = _highest(scores.flatten(0, 1)[choosing], top_k)
        begins = window.begins(first.device).expand(-1, window.size).flatten()[choosing]
        here = torch.arange(window.queries.start, window.queries.stop, device=first.device)
        ids[here[choosing]] = (begins.unsqueeze(1) + chosen).to(torch.int32)
    return ids


def index_scores(queries: Tensor, weights: Tensor, keys: Tensor, window: Window) -> Tensor:
    """Scores of one window, unmasked: [blocks, size, width] float32 (float64 of float64 inputs)."""
    blocks, size, heads, dim = window.blocks, window.size, queries.shape[1], queries.shape[2]
    dtype = softmax_dtype(queries)
    q = queries[window.queries].reshape(blocks, size * heads, dim)
    # ReLU(c x) = c ReLU(x): the scale is taken on the weights, which are fewer.
    w = (weights[window.queries].to(dtype) * dim**-0.5).view(blocks * size, 1, heads)
    taken = window.take(keys)
    if not q.is_cuda:
        q, taken = q.to(dtype), taken.to(dtype)  # once, not for every chunk
    scores = queries.new_empty(blocks, size, window.width, dtype=dtype)
    for at in range(0, window.width, CHUNK_ROWS):
        chunk = taken[:, at : at + CHUNK_ROWS]
        width = chunk.shape[1]
        chunk = F.pad(chunk, (0, 0, 0, -width % ALIGNED_ROWS))
        fired = product(q, chunk.transpose(1, 2)).relu_()  # [blocks, size * heads, chunk]
        summed = torch.bmm(w, fired.view(blocks * size, heads, -1))
        scores[:, :, at : at + width] = summed.view(blocks, size, -1)[..., :width]
    return scores


def _highest(scores: Tensor, top_k: int) -> Tensor:
    """Columns [n, top_k], ascending, of the highest `scores` [n, width]; equal ones: the lowest columns."""
    if bool(scores.sum().isnan()):
        raise RunError("the indexer's scores are not numbers: a weight or an input of it is NaN.")
    threshold = _kth_highest(scores, top_k)
    chosen, level = scores > threshold, scores == threshold
    room = top_k - chosen.sum(1, dtype=torch.int32)
    if bool((level.sum(1, dtype=torch.int32) > room).any()):
        _keep_first(level, room)
    return (chosen | level).nonzero()[:, 1].view(len(scores), top_k)


def _keep_first(mask: Tensor, counts: Tensor) -> None:
    """Of each row of `mask` [n, width] only the first `counts` [n] columns that are set stay so."""
    rows, columns = mask.nonzero(as_tuple=True)
    set_before = mask.sum(1, dtype=torch.int32).cumsum(0).roll(1)
    set_before[0] = 0
    rank = torch.arange(len(rows), device=mask.device) - set_before[rows]
    kept = rank < counts[rows]
    mask.zero_()
    mask[rows[kept], columns[kept]] = True


def _kth_highest(scores: Tensor, k: int) -> Tensor:  # [n, width] -> [n, 1]
    if scores.is_cuda:
        return scores.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    # numpy's vectorised quickselect takes a ninth of torch.topk's time on a CPU (0.8 ns a score).
    place = scores.shape[1] - k
    ordered = np.partition(scores.numpy(), place, axis=1)
    return torch.from_numpy(ordered[:, place : place + 1])
