"""The indexer's own loss: its scores, as a distribution over rows, against what attention looks at.

    L = sum_t w_t KL(p_t || softmax(I_t)),   p_t = mean over heads (and served layers) of softmax_s(a_t,h)

over the chosen rows T_t (sparse stage) or every row in range (dense warm-up); DeepSeek-V3.2, section 2.1.
With IndexShare an indexer serves several layers: p is then the mean of theirs (multi-layer distillation,
IndexCache, arXiv 2603.12201), whose gradient is that of the mean of the KLs.

The target is a constant and so are the indexer's inputs (the caller detaches them): only the indexer's
weights learn from L, and nothing else teaches them, as a choice of rows has no gradient. The gradient is
computed in the forward pass, as soon as every served layer has shown its attention, one tile at a time:

    dL/dI_ts = w_t (softmax(I_t)_s - p_ts);   dI_ts/dw_tj = ReLU(c q_tj . k_s);   c = index_dim^-1/2

and waits in `IndexerLoss` until the backward pass of the layer that owns the indexer. That holds under
recompute (the replay finds what the first pass left) and under every pipeline schedule.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlframe.errors import RunError
from trainer.models.glm.sparse_attention import tile_scores
from trainer.models.glm.tiles import Selection, Tile, product, softmax_dtype


class IndexerLoss:
    """One indexer's loss on one micro-batch; lives with the micro-batch, from layer to layer.

    `served` layers call `add`, each once: the owner first. After the last one `divergence` is L on this
    rank ([], no gradient) and the gradients are there. `group`: the ranks that have the other heads.
    """

    def __init__(
        self,
        queries: Tensor,  # [q, index_heads, index_dim]
        weights: Tensor,  # [q, index_heads], already times index_heads^-0.5
        keys: Tensor,  # [k, index_dim]
        *,
        selection: Selection,
        token_weights: Tensor,  # [q] w_t: the coefficient over the tokens of the global batch; 0: padding
        served: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._index = (queries.detach(), weights.detach(), keys.detach())
        self._selection = selection
        self._token_weights = token_weights
        self._served = served
        self._group = group
        self._attention: list[tuple[Tensor, Tensor, float]] = []
        self._gradients: tuple[Tensor, Tensor, Tensor] | None = None
        self._complete = False
        self.divergence: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Every served layer has been here; a replay has nothing to add."""
        return self._complete

    @torch.no_grad()
    def add(self, queries: Tensor, rows: Tensor, *, scale: float) -> None:
        """A served layer's absorbed queries [q, heads of this rank, dim] and rows [k, dim]."""
        if self.complete:
            return
        self._attention.append((queries.detach(), rows.detach(), scale))
        if len(self._attention) == self._served:
            self._finish()
            self._complete = True
            self._attention.clear()

    def take_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """dL of queries, weights and keys; they are handed out once. Raises RunError if layers are missing."""
        if self._gradients is None:
            raise RunError(
                f"an indexer that serves {self._served} layers has seen {len(self._attention)} of them."
            )
        gradients, self._gradients = self._gradients, None
        return gradients

    def _finish(self) -> None:
        queries, weights, keys = self._index
        dtype = softmax_dtype(queries)
        d_keys = torch.zeros(keys.shape, dtype=dtype, device=keys.device)
        d_queries, d_weights = torch.empty_like(queries), torch.empty_like(weights)
        divergence = torch.zeros((), dtype=dtype, device=keys.device)
        heads = max(queries.shape[1], *(q.shape[1] for q, _, _ in self._attention))
        dim = max(keys.shape[1], *(rows.shape[1] for _, rows, _ in self._attention))
        for tile in self._selection.tiles(heads=heads, dim=dim):
            target = self._target(tile)
            index = _TileIndex(tile, queries, weights, keys)
            log_q = index.scores.masked_fill(~tile.mask, float("-inf")).log_softmax(-1)
            log_q = log_q.masked_fill(~tile.mask, 0.0)  # a query without rows: NaN otherwise
            w = self._token_weights[tile.queries].to(dtype).view(tile.blocks, tile.size, 1)
            divergence += (w * (torch.xlogy(target, target) - target * log_q)).sum()
            d_scores = (log_q.exp().masked_fill_(~tile.mask, 0.0) - target).mul_(w)
            d_q, d_w, d_k = index.backward(d_scores)
            d_queries[tile.queries], d_weights[tile.queries] = d_q, d_w
            tile.add(d_keys, d_k)
        self._gradients = (d_queries, d_weights, d_keys.to(keys.dtype))
        self.divergence = divergence

    def _target(self, tile: Tile) -> Tensor:  # [blocks, size, width], sums to 1 (or 0: no rows)
        total: Tensor | None = None
        for queries, rows, scale in self._attention:
            scores = tile_scores(tile, queries, tile.take(rows), scale)
            p = scores.softmax(-1).sum(2).masked_fill_(~tile.mask, 0.0)
            total = p if total is None else total.add_(p)
        assert total is not None
        if self._group is not None and dist.get_world_size(self._group) > 1:
            dist.all_reduce(total, group=self._group)
        return total.div_(total.sum(-1, keepdim=True).clamp_(min=1e-30))


class _TileIndex:
    """The indexer's scores [blocks, size, width] of one tile, and the way back from their gradient."""

    def __init__(self, tile: Tile, queries: Tensor, weights: Tensor, keys: Tensor) -> None:
        self._shape = (tile.blocks, tile.size, queries.shape[1])
        self._scale = queries.shape[2] ** -0.5
        self._q = queries[tile.queries].reshape(tile.blocks, -1, queries.shape[2])
        self._w = weights[tile.queries].to(softmax_dtype(queries)).view(*self._shape, 1)
        self._k = tile.take(keys)
        fired = product(self._q, self._k.transpose(1, 2), scale=self._scale).relu_()
        self._fired = fired.view(*self._shape, -1)  # [blocks, size, heads, width]
        self.scores = (self._w.transpose(2, 3) @ self._fired).squeeze(2)

    def backward(self, d_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries [n, heads, dim], weights [n, heads] and taken keys [blocks, width, dim]."""
        heads = self._shape[2]
        d_weights = (self._fired @ d_scores.unsqueeze(3)).view(-1, heads)
        d_fired = (d_scores.unsqueeze(2) * self._w).mul_(self._fired > 0).flatten(1, 2)
        d_queries = product(d_fired, self._k, scale=self._scale).view(-1, heads, self._k.shape[2])
        return d_queries, d_weights, product(d_fired.transpose(1, 2), self._q, scale=self._scale)


def attach(
    output: Tensor, queries: Tensor, weights: Tensor, keys: Tensor, *, loss: IndexerLoss
) -> Tensor:
    """`output` unchanged; its backward pass also sends L's gradient into the indexer's outputs.

    L's weight is `token_weights` alone: the scale of the loss behind `output` does not matter.
    """
    out: Tensor = _Attach.apply(output, queries, weights, keys, loss)  # type: ignore[no-untyped-call]
    return out


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, queries: Tensor, weights: Tensor, keys: Tensor, loss: IndexerLoss
    ) -> Tensor:
        ctx.loss = loss
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], *ctx.loss.take_gradients(), None
