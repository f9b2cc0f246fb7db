"""A GLM-5 target and its MTP draft with caches, in the order in which SGLang runs them (0.5.23).

prefill / verify   the target on the new tokens writes rows and gives h after model.norm
draft-extend       MTP on (token p + 1, h_p) writes row p, for every row that the target has confirmed;
                   the last one gives the first draft
draft step k >= 2  one token of each sequence at position n + k - 2, where n rows are confirmed, on the
                   hidden state of the step before. GLM-5.1 style: writes its row, its indexer runs. With
                   `mtp_index_share` (GLM-5.2): writes nothing and reads the ids of draft-extend's last row
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlframe.model_shapes.glm import GlmShape
from trainer.models.glm.cached_layers import Cache, CachedLayer, rms_norm

PREFILL_TOKENS = 32
"""Tokens of each sequence that go through the model at once."""


class CachedTarget:
    """The backbone: tokens in, hidden states after model.norm out."""

    def __init__(
        self, shape: GlmShape, tensors: Mapping[str, Tensor], *, batch: int, capacity: int
    ) -> None:
        self._shape, self._tensors = shape, tensors
        self._layers = [CachedLayer(shape, tensors, layer) for layer in range(shape.layers)]
        self._caches = [
            Cache.empty(
                shape,
                batch=batch,
                capacity=capacity,
                indexed=layer.indexed,
                like=tensors["model.embed_tokens.weight"],
            )
            for layer in self._layers
        ]

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """[B, m] tokens at their positions -> [B, m, hidden]; rows before them must be there."""
        x = self._tensors["model.embed_tokens.weight"][token_ids]
        ids: Tensor | None = None
        for layer, cache in zip(self._layers, self._caches, strict=True):
            x, ids = layer.forward(x, positions, cache, ids=None if layer.indexed else ids)
        return rms_norm(x, self._tensors["model.norm.weight"], self._shape.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        name = "model.embed_tokens" if self._shape.tied_embeddings else "lm_head"
        return hidden @ self._tensors[f"{name}.weight"].T


class CachedMtp:
    """The MTP layer: `extend`, then `begin` a round of drafts, then `step` for each further draft."""

    def __init__(
        self, shape: GlmShape, tensors: Mapping[str, Tensor], *, batch: int, capacity: int
    ) -> None:
        self._shape, self._tensors = shape, tensors
        self._prefix = f"model.layers.{shape.layers}."
        self._layer = CachedLayer(shape, tensors, shape.layers)
        like = tensors["model.embed_tokens.weight"]
        self._cache = Cache.empty(shape, batch=batch, capacity=capacity, indexed=True, like=like)
        self._last_hidden = like.new_zeros(batch, capacity, shape.hidden_size)
        self._last_ids = torch.full(
            (batch, capacity, min(shape.index_top_k, capacity)), -1, device=like.device
        )
        self._hidden, self._ids, self._position = self._last_hidden[:, :1], self._last_ids, like

    def extend(self, next_tokens: Tensor, hidden: Tensor, positions: Tensor) -> None:
        """Rows at positions [B, m] from the target's hidden states [B, m, hidden] and the tokens after them."""
        out, ids = self._layer.forward(self._input(next_tokens, hidden), positions, self._cache)
        sequence = torch.arange(len(positions), device=positions.device)[:, None]
        self._last_hidden[sequence, positions] = self._normed(out)
        self._last_ids[sequence, positions] = ids

    def begin(self, rows: Tensor) -> Tensor:
        """[B] confirmed rows -> the hidden state [B, hidden] that the first draft is read from."""
        sequence = torch.arange(len(rows), device=rows.device)
        self._hidden = self._last_hidden[sequence, rows - 1][:, None]
        self._ids = self._last_ids[sequence, rows - 1][:, None]
        self._position = rows
        return self._hidden[:, 0]

    def step(self, tokens: Tensor) -> Tensor:
        """[B] the draft just made -> the hidden state [B, hidden] of the next one."""
        shares = self._shape.mtp_index_share
        x = self._input(tokens[:, None], self._hidden)
        out, _ = self._layer.forward(
            x,
            self._position[:, None],
            self._cache,
            ids=self._ids if shares else None,
            writes=not shares,
        )
        self._hidden, self._position = self._normed(out), self._position + 1
        return self._hidden[:, 0]

    def _input(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        embedded = self._tensors["model.embed_tokens.weight"][tokens]
        eps, weight = self._shape.norm_eps, self._weight
        both = [rms_norm(embedded, weight("enorm"), eps), rms_norm(hidden, weight("hnorm"), eps)]
        return torch.cat(both, -1) @ weight("eh_proj").T

    def _normed(self, out: Tensor) -> Tensor:
        return rms_norm(out, self._weight("shared_head.norm"), self._shape.norm_eps)

    def _weight(self, name: str) -> Tensor:
        return self._tensors[f"{self._prefix}{name}.weight"]


class CachedGlm:
    """Both together: a `trainer.speculative.SpeculativeModel`.

    Prompts [B, n] of equal length; the last token of each is the first that the target has not run on.
    """

    @torch.no_grad()
    def __init__(
        self, shape: GlmShape, tensors: Mapping[str, Tensor], prompts: Tensor, *, capacity: int
    ) -> None:
        """`capacity`: of tokens of each sequence, drafts included."""
        batch, tokens = prompts.shape
        self.target = CachedTarget(shape, tensors, batch=batch, capacity=capacity)
        self.mtp = CachedMtp(shape, tensors, batch=batch, capacity=capacity)
        self._pending = prompts[:, -1]  # [B] committed, but not yet run on by the target
        self._rows = torch.full((batch,), tokens - 1, device=prompts.device)
        self._hidden = self._drafts = prompts[:, :0]
        for first in range(0, tokens - 1, PREFILL_TOKENS):
            at = torch.arange(first, min(first + PREFILL_TOKENS, tokens - 1))
            positions = at.to(prompts.device).expand(batch, -1)
            hidden = self.target.forward(prompts[:, at], positions)
            self.mtp.extend(prompts[:, at + 1], hidden, positions)

    def begin_drafts(self) -> Tensor:
        return self.target.logits(self.mtp.begin(self._rows))

    def next_draft(self, drafts: Tensor) -> Tensor:
        return self.target.logits(self.mtp.step(drafts))

    def verify(self, drafts: Tensor) -> Tensor:
        tokens = torch.cat([self._pending[:, None], drafts], dim=1)
        self._hidden = self.target.forward(tokens, self._positions(tokens.shape[1]))
        return self.target.logits(self._hidden)

    def commit(self, tokens: Tensor, counts: Tensor) -> None:
        """Rows past the accepted ones are written too: the next round writes them again before it reads them."""
        self.mtp.extend(tokens.clamp(min=0), self._hidden, self._positions(tokens.shape[1]))
        self._pending = tokens.gather(1, counts[:, None] - 1).squeeze(1)
        self._rows = self._rows + counts

    def _positions(self, count: int) -> Tensor:
        return self._rows[:, None] + torch.arange(count, device=self._rows.device)
