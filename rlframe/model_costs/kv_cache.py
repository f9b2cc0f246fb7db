"""Bytes of the KV cache for one token, as SGLang 0.5.20 lays it out on a GPU.

Latent rows [512 | 64] of each layer: two bytes a number, or FP8 with a float32 scale for each 128 of the latent
part and the rotated part in BF16 (`calculate_mla_kv_cache_dim`); TensorRT-LLM's kernels take all of it in FP8.
Index keys, on layers that own an indexer: FP8 with a float32 scale for each 128 (`DSATokenToKVPool`), whatever
the KV dtype is.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlframe.model_shapes.glm import GlmShape

BLOCK = 128
SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class KvCache:
    """Bytes of one token, over all layers."""

    dtype: str
    rows: int
    index_keys: int

    @property
    def total(self) -> int:
        return self.rows + self.index_keys


def glm_kv_caches(shape: GlmShape) -> tuple[KvCache, ...]:
    """Under each dtype, without the MTP layer's (one layer more of both)."""
    scaled = shape.latent_rank + shape.latent_rank // BLOCK * SCALE_BYTES + 2 * shape.rope_dim
    row_bytes = {
        "bfloat16": 2 * shape.row_dim,
        "fp8_e4m3": scaled,
        "fp8_e4m3 (trtllm)": shape.row_dim,
    }
    key = shape.index_dim + shape.index_dim // BLOCK * SCALE_BYTES
    return tuple(
        KvCache(dtype, rows=size * shape.layers, index_keys=key * sum(shape.indexer_types))
        for dtype, size in row_bytes.items()
    )
