"""DeepSeek Sparse Attention's lightning indexer: which rows each token attends to.

    score(t, s) = sum_j w_tj * ReLU(q_tj . k_s / sqrt(index_dim)),  s <= t in the same sequence

(DeepSeek-V3.2; transformers 5.23 `GlmMoeDsaIndexer`). All its weights are the same on every rank, so all
tensor-parallel ranks choose the same rows.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from rlframe.model_shapes.glm import GlmShape
from trainer.models.glm.rotary import rotate_pairs
from trainer.models.layers import ReplicatedLinear

K_NORM_EPS = 1e-6


class Indexer(torch.nn.Module):
    def __init__(self, config: TransformerConfig, shape: GlmShape) -> None:
        super().__init__()
        self.heads, self.dim, self.rope_dim = shape.index_heads, shape.index_dim, shape.rope_dim
        self.linear_q = ReplicatedLinear(config, shape.query_rank, self.heads * self.dim)
        self.linear_k = ReplicatedLinear(config, shape.hidden_size, self.dim)
        self.k_norm = torch.nn.LayerNorm(self.dim, eps=K_NORM_EPS, dtype=config.params_dtype)
        self.linear_weights = ReplicatedLinear(config, shape.hidden_size, self.heads)
        for parameter in self.k_norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def queries(self, latent: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """[t, query_rank], normalised -> [t, heads, dim], the first `rope_dim` numbers rotated."""
        queries: Tensor = self.linear_q(latent)
        return self._rotated(queries.view(-1, self.heads, self.dim), angles)

    def keys(self, inputs: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """[t, hidden] -> [t, dim], the first `rope_dim` numbers rotated."""
        keys: Tensor = self.k_norm(self.linear_k(inputs))
        return self._rotated(keys.unsqueeze(1), angles).squeeze(1)

    def weights(self, inputs: Tensor) -> Tensor:
        """[t, hidden] -> float32 [t, heads], heads^-1/2 in them; may be negative."""
        weights: Tensor = self.linear_weights(inputs)
        return weights.float() * float(self.heads**-0.5)

    def _rotated(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        rotated = rotate_pairs(x[..., : self.rope_dim], *angles)
        return torch.cat((rotated, x[..., self.rope_dim :]), dim=-1)
