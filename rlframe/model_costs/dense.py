"""What a Qwen3-type dense model costs."""

from __future__ import annotations

from rlframe.model_costs.flops import TokenFlops, keys_seen
from rlframe.model_costs.kv_cache import KvCache
from rlframe.model_costs.weights import ModelWeights, Spread, Weights, active, vector
from rlframe.model_shapes.dense import DenseShape


def dense_weights(shape: DenseShape) -> ModelWeights:
    """Qwen3-0.6B: 596,049,920 parameters with its tied embeddings."""
    stored = 0 if shape.tied_embeddings else 1
    vocabulary, hidden = shape.vocab_size, shape.hidden_size
    return ModelWeights(
        embedding=(Weights("embedding", vocabulary, hidden, used=0, spread=Spread.TENSOR),),
        layers=(_layer(shape),) * shape.layers,
        head=(
            vector("norms", hidden),
            Weights("head", vocabulary, hidden, copies=stored, spread=Spread.TENSOR),
        ),
    )


def _layer(shape: DenseShape) -> tuple[Weights, ...]:
    hidden, queries = shape.hidden_size, shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    return (
        vector("norms", 2 * hidden + 2 * shape.head_dim),
        Weights("attention", queries + 2 * keys, hidden, spread=Spread.TENSOR),
        Weights("attention", hidden, queries, spread=Spread.TENSOR),
        Weights("feed-forward", shape.ffn_size, hidden, copies=3, used=3, spread=Spread.TENSOR),
    )


def dense_token_flops(shape: DenseShape, context: int, *, averaged: bool = False) -> TokenFlops:
    """Of the token at position `context`; `averaged`: of a mean token of a prompt of that length."""
    keys, _ = keys_seen(context, context, averaged=averaged)
    return TokenFlops(
        linear=2.0 * active(dense_weights(shape).backbone()),
        core=4.0 * shape.heads * shape.head_dim * keys * shape.layers,
    )


def dense_kv_caches(shape: DenseShape) -> tuple[KvCache, ...]:
    """Keys and values of all layers under each dtype."""
    numbers = 2 * shape.kv_heads * shape.head_dim * shape.layers
    return (
        KvCache("bfloat16", rows=2 * numbers, index_keys=0),
        KvCache("fp8_e4m3", rows=numbers, index_keys=0),
    )
