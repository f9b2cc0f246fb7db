"""GLM-5 layers that decode with caches: a second, independent implementation in plain torch.

It reads Hugging Face tensors, follows the equations and the order of SGLang, and knows neither Megatron nor
packed rows: what training computes is tested against it, and the reference speculative decoder runs on it.
For small models on small batches; it is written to be checked.

Legend: B sequences, m new tokens of each, C cached rows (capacity), h heads, k ids a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from rlframe.model_shapes.glm import GlmShape

K_NORM_EPS = 1e-6


@dataclass(slots=True, eq=False)
class Cache:
    """What one layer remembers of B sequences; rows at and after a sequence's length mean nothing."""

    rows: Tensor  # [B, C, latent + rope]
    keys: Tensor | None  # [B, C, index_dim]; none where the layer owns no indexer

    @classmethod
    def empty(
        cls, shape: GlmShape, *, batch: int, capacity: int, indexed: bool, like: Tensor
    ) -> Cache:
        return cls(
            like.new_zeros(batch, capacity, shape.row_dim),
            like.new_zeros(batch, capacity, shape.index_dim) if indexed else None,
        )


class CachedLayer:
    """Layer `layer` of a checkpoint; `layer == shape.layers` is the decoder layer of MTP."""

    def __init__(self, shape: GlmShape, tensors: Mapping[str, Tensor], layer: int) -> None:
        self._shape, self._tensors = shape, tensors
        self._prefix = f"model.layers.{layer}."
        self.indexed = layer >= shape.layers or shape.indexer_types[layer]
        self._sparse = shape.is_sparse(layer)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: Cache,
        *,
        ids: Tensor | None = None,
        writes: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """x [B, m, hidden] at positions [B, m] -> the same shape, and the ids [B, m, k] it used.

        With `writes` the tokens' rows (and index keys) are put at their positions before anything is read.
        Given `ids` are used as they are; otherwise the layer's indexer chooses among rows 0..position.
        """
        z = self._norm(x, "input_layernorm")
        latent = self._norm(z @ self._weight("self_attn.q_a_proj").T, "self_attn.q_a_layernorm")
        if writes:
            self._write(z, positions, cache, keys=ids is None)
        if ids is None:
            ids = self._choose(z, latent, positions, cache)
        x = x + self._attend(latent, positions, cache.rows, ids)
        return x + self._feed_forward(self._norm(x, "post_attention_layernorm")), ids

    def _write(self, z: Tensor, positions: Tensor, cache: Cache, *, keys: bool) -> None:
        latent_rank = self._shape.latent_rank
        down = z @ self._weight("self_attn.kv_a_proj_with_mqa").T
        latent = self._norm(down[..., :latent_rank], "self_attn.kv_a_layernorm")
        rotated = self._rotate(down[..., latent_rank:], positions)
        _put(cache.rows, positions, torch.cat([latent, rotated], -1))
        if keys:
            assert cache.keys is not None
            key = F.layer_norm(
                z @ self._weight("self_attn.indexer.wk").T,
                (self._shape.index_dim,),
                self._weight("self_attn.indexer.k_norm"),
                self._tensors[f"{self._prefix}self_attn.indexer.k_norm.bias"],
                K_NORM_EPS,
            )
            _put(cache.keys, positions, self._rotate_first(key, positions))

    def _choose(self, z: Tensor, latent: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """[B, m, k] rows of highest index score among 0..position; -1 where there are fewer."""
        shape, keys = self._shape, cache.keys
        assert keys is not None
        queries = latent @ self._weight("self_attn.indexer.wq_b").T
        queries = queries.view(*positions.shape, shape.index_heads, shape.index_dim)
        queries = self._rotate_first(queries, positions)
        weights = z @ self._weight("self_attn.indexer.weights_proj").T * shape.index_heads**-0.5
        products = torch.einsum("bmjd,bcd->bmjc", queries, keys) * shape.index_dim**-0.5
        scores = torch.einsum("bmj,bmjc->bmc", weights, products.relu())
        index = torch.arange(keys.shape[1], device=z.device)
        scores = scores.masked_fill(index > positions[..., None], -torch.inf)
        best = scores.topk(min(shape.index_top_k, keys.shape[1]), dim=-1)
        return best.indices.where(best.values > -torch.inf, -1)

    def _attend(self, latent: Tensor, positions: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        shape = self._shape
        queries = latent @ self._weight("self_attn.q_b_proj").T
        queries = queries.view(*positions.shape, shape.heads, shape.head_dim)
        up = self._weight("self_attn.kv_b_proj").view(shape.heads, -1, shape.latent_rank)
        to_keys, to_values = up[:, : shape.nope_dim], up[:, shape.nope_dim :]
        nope = torch.einsum("bmhn,hnl->bmhl", queries[..., : shape.nope_dim], to_keys)
        rotated = self._rotate(queries[..., shape.nope_dim :], positions)
        taken = _take(rows, ids.clamp(min=0))  # [B, m, k, latent + rope]
        scores = torch.einsum("bmhr,bmkr->bmhk", torch.cat([nope, rotated], -1), taken)
        scores = (scores * shape.head_dim**-0.5).masked_fill(ids[:, :, None] < 0, -torch.inf)
        mixed = torch.einsum("bmhk,bmkl->bmhl", scores.softmax(-1), taken[..., : shape.latent_rank])
        values = torch.einsum("bmhl,hvl->bmhv", mixed, to_values)
        return values.flatten(2) @ self._weight("self_attn.o_proj").T

    def _feed_forward(self, z: Tensor) -> Tensor:
        if not self._sparse:
            return self._swiglu(z, "mlp.")
        shape = self._shape
        scores = torch.sigmoid(z @ self._weight("mlp.gate").to(z.dtype).T)
        bias = self._tensors[f"{self._prefix}mlp.gate.e_score_correction_bias"]
        chosen = (scores + bias.to(z.dtype)).topk(shape.experts_per_token, dim=-1).indices
        gates = scores.gather(-1, chosen)
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        gates = torch.zeros_like(scores).scatter(-1, chosen, gates * shape.routed_scale)
        out = self._swiglu(z, "mlp.shared_experts.") if shape.shared_experts else 0 * z
        for expert in range(shape.experts):
            out = out + gates[..., expert, None] * self._swiglu(z, f"mlp.experts.{expert}.")
        return out

    def _swiglu(self, z: Tensor, part: str) -> Tensor:
        gate, up = (z @ self._weight(f"{part}{n}_proj").T for n in ("gate", "up"))
        return (F.silu(gate) * up) @ self._weight(f"{part}down_proj").T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self._weight(name), self._shape.norm_eps)

    def _weight(self, name: str) -> Tensor:
        return self._tensors[f"{self._prefix}{name}.weight"]

    def _rotate_first(self, x: Tensor, positions: Tensor) -> Tensor:
        rope = self._shape.rope_dim
        return torch.cat([self._rotate(x[..., :rope], positions), x[..., rope:]], -1)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Pairs (v0, v1), (v2, v3) ... of x [B, m, ..., rope] by the angles of positions [B, m]."""
        rope = self._shape.rope_dim
        exponents = torch.arange(0, rope, 2, device=x.device).float() / rope
        frequencies = 1.0 / self._shape.rope_theta**exponents
        angles = positions[..., None].float() * frequencies
        angles = angles.view(*positions.shape, *[1] * (x.dim() - 3), rope // 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.cat([even * cos - odd * sin, odd * cos + even * sin], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _put(cache: Tensor, positions: Tensor, values: Tensor) -> None:
    """cache[b, positions[b, i]] = values[b, i]."""
    sequence = torch.arange(len(cache), device=cache.device)[:, None]
    cache[sequence, positions] = values


def _take(cache: Tensor, ids: Tensor) -> Tensor:
    """[B, C, d] at [B, m, k] -> [B, m, k, d]."""
    sequence = torch.arange(len(cache), device=cache.device)[:, None, None]
    return cache[sequence, ids]
