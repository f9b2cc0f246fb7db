"""The lightning indexer in plain torch, under the parameter names of SGLang's own."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.rotary_embedding import factory
from sglang.srt.model_executor.forward_context import get_attn_backend
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from rollout.engine.glm_cpu.choice import choose_rows
from rollout.engine.glm_cpu.layout import layout_of

K_NORM_EPS = 1e-6


class TorchIndexer(nn.Module):
    """Stands in for `sglang.srt.layers.attention.dsa.dsa_indexer.Indexer` (0.5.20).

    Its keys lie in a buffer of its own by the KV pool's rows: what shares, evicts or retracts those rows
    does the same with the keys.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        index_n_heads: int,
        index_head_dim: int,
        rope_head_dim: int,
        index_topk: int,
        q_lora_rank: int,
        max_position_embeddings: int,
        rope_theta: float,
        layer_id: int,
        rope_scaling: Any = None,
        is_neox_style: bool = True,
        prefix: str = "",
        quant_config: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._heads, self._dim, self._rope = index_n_heads, index_head_dim, rope_head_dim
        self._top_k, self._layer_id = index_topk, layer_id

        def linear(inputs: int, outputs: int, name: str) -> ReplicatedLinear:
            return ReplicatedLinear(
                inputs,
                outputs,
                bias=False,
                quant_config=quant_config,
                prefix=add_prefix(name, prefix),
            )

        self.wq_b = linear(q_lora_rank, index_n_heads * index_head_dim, "wq_b")
        self.wk = linear(hidden_size, index_head_dim, "wk")
        self.weights_proj = linear(hidden_size, index_n_heads, "weights_proj")
        self.k_norm = nn.LayerNorm(index_head_dim, eps=K_NORM_EPS)
        self.rotary_emb = factory.get_rope_wrapper(
            rope_head_dim,
            rotary_dim=rope_head_dim,
            max_position=max_position_embeddings,
            base=rope_theta,
            rope_scaling=rope_scaling,
            is_neox_style=is_neox_style,
            device="cpu",
        )
        self._keys: Tensor | None = None  # [pool rows, index_dim]

    def forward(
        self,
        x: Tensor,  # [q, hidden], normalised
        q_lora: Tensor,  # [q, q_lora_rank], normalised
        positions: Tensor,  # [q]
        forward_batch: Any,
        layer_id: int,
        **_: Any,
    ) -> Tensor:
        """Positions of the chosen rows, int32 [q, width], -1 where there are fewer."""
        backend = get_attn_backend()
        queries, keys = self._rotated(x, q_lora, positions)
        if self._keys is None:
            rows = backend.token_to_kv_pool.get_key_buffer(self._layer_id).shape[0]
            self._keys = x.new_zeros(rows, self._dim)
        self._keys[forward_batch.out_cache_loc.long()] = keys
        weights = self.weights_proj(x)[0].float() * (self._heads * self._dim) ** -0.5
        layout = layout_of(forward_batch, backend.req_to_token_pool.req_to_token)
        return choose_rows(queries.float(), weights, self._keys, layout, top_k=self._top_k)

    def _rotated(self, x: Tensor, q_lora: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[q, index_heads, index_dim] and [q, index_dim]; only the first dimensions are rotated."""
        queries = self.wq_b(q_lora)[0].view(-1, self._heads, self._dim)
        keys = self.k_norm(self.wk(x)[0]).to(x.dtype).unsqueeze(1)
        turned_queries, turned_keys = self.rotary_emb(
            positions,
            queries[..., : self._rope].contiguous(),
            keys[..., : self._rope].contiguous(),
        )
        turned_queries = turned_queries.view(-1, self._heads, self._rope)
        turned_keys = turned_keys.view(-1, 1, self._rope)
        return (
            torch.cat([turned_queries, queries[..., self._rope :]], -1),
            torch.cat([turned_keys, keys[..., self._rope :]], -1).squeeze(1),
        )
