"""Bytes that a layer keeps of one token for its backward pass, on one rank.

Terms follow the modules in `trainer/models` (what autograd saves, each tensor once); a test counts the real
ones on the meta device. b: bytes of a number; with sequence parallelism the residual's tensors are split.
"""

from __future__ import annotations

from rlframe.config.schema import LayoutConfig
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm import GlmShape

FLOAT32 = 4


def layer_bytes(shape: ModelShape, layer: int, *, layout: LayoutConfig, dtype_bytes: int) -> float:
    """Without recomputation."""
    if isinstance(shape, DenseShape):
        return _dense_layer(shape, layout, dtype_bytes)
    return _attention(shape, layout, dtype_bytes) + (
        _experts(shape, layout, dtype_bytes)
        if shape.is_sparse(layer)
        else _feed_forward(shape.hidden_size, shape.ffn_size, layout, dtype_bytes)
    )


def input_bytes(shape: ModelShape, *, layout: LayoutConfig, dtype_bytes: int) -> float:
    """What full recomputation keeps of a layer: its input."""
    return shape.hidden_size * dtype_bytes / _sequence_split(layout)


def ids_bytes(shape: ModelShape, layers: list[int]) -> int:
    """Ids that indexers chose, int32, kept for the layers that share them until the last replay."""
    if isinstance(shape, DenseShape):
        return 0
    sources = {shape.source_layers[layer] for layer in layers}
    return len(sources) * shape.index_top_k * 4


def head_bytes(shape: ModelShape, *, layout: LayoutConfig, dtype_bytes: int) -> float:
    """Logits and their gradient, if every token is an action; the loss works on them in chunks."""
    return shape.vocab_size / layout.tensor * 2 * dtype_bytes


def _sequence_split(layout: LayoutConfig) -> int:
    return layout.tensor if layout.sequence_parallel else 1


def _attention(shape: GlmShape, layout: LayoutConfig, b: int) -> float:
    """Two norms' inputs, the projections' inputs, absorbed queries, rows, and outputs of each head."""
    residual = (3 * shape.hidden_size + 2 * shape.query_rank + shape.row_dim) * b
    heads = shape.heads / layout.tensor
    a_head = (shape.nope_dim + shape.row_dim + shape.latent_rank + shape.value_dim) * b + FLOAT32
    rows = shape.row_dim * b * layout.context  # of every token of the micro-batch, on every rank
    return residual / _sequence_split(layout) + heads * a_head + rows


def _feed_forward(hidden: int, ffn: int, layout: LayoutConfig, b: int) -> float:
    """Its input; gate and up, silu(gate), and their product."""
    return hidden * b / _sequence_split(layout) + 4 * ffn / layout.tensor * b


def _experts(shape: GlmShape, layout: LayoutConfig, b: int) -> float:
    hidden, ffn = shape.hidden_size, shape.expert_ffn_size
    router = shape.experts * FLOAT32
    routed = shape.experts_per_token * (hidden + 5 * ffn) * b
    shared = _feed_forward(hidden, ffn * shape.shared_experts, layout, b)
    return (router + routed) / _sequence_split(layout) + shared


def _dense_layer(shape: DenseShape, layout: LayoutConfig, b: int) -> float:
    hidden, queries = shape.hidden_size, shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    residual = 3 * hidden * b / _sequence_split(layout)
    # q, k and v before and after norm and rotation; the attention's output. What is attended to is of every
    # token of the micro-batch, on every context-parallel rank.
    attended = 2 * keys * layout.context
    attention = (2 * queries + keys + attended + queries) / layout.tensor * b
    return residual + attention + _feed_forward(hidden, shape.ffn_size, layout, b)
