"""The weights of a GLM-5 model, with the shapes of its published checkpoints."""

from __future__ import annotations

from rlframe.model_costs.weights import ModelWeights, Spread, Weights, vector
from rlframe.model_shapes.glm import GlmShape


def glm_weights(shape: GlmShape) -> ModelWeights:
    """GLM-5.2: 753,329,940,480 parameters with the MTP layer; 40,297,758,720 multiply one token."""
    hidden = shape.hidden_size
    stored = 0 if shape.tied_embeddings else 1
    return ModelWeights(
        embedding=(Weights("embedding", shape.vocab_size, hidden, used=0, spread=Spread.TENSOR),),
        layers=tuple(glm_layer_weights(shape, layer) for layer in range(shape.layers)),
        head=(
            vector("norms", hidden),
            Weights("head", shape.vocab_size, hidden, copies=stored, spread=Spread.TENSOR),
        ),
        mtp=_mtp_weights(shape) if shape.mtp_layers else (),
    )


def glm_layer_weights(shape: GlmShape, layer: int) -> tuple[Weights, ...]:
    """Layer `layer`; `shape.layers` is the decoder layer inside the MTP layer, which owns an indexer."""
    owns_indexer = layer >= shape.layers or shape.indexer_types[layer]
    return (
        *(vector("norms", shape.hidden_size) for _ in ("input", "post_attention")),
        *_attention(shape),
        *(indexer_weights(shape) if owns_indexer else ()),
        *(_experts(shape) if shape.is_sparse(layer) else _dense(shape)),
    )


def indexer_weights(shape: GlmShape) -> tuple[Weights, ...]:
    """One lightning indexer: queries from the query latent, one key head, a weight a head."""
    return (
        Weights("indexer", shape.index_heads * shape.index_dim, shape.query_rank),
        Weights("indexer", shape.index_dim, shape.hidden_size),
        vector("indexer", 2 * shape.index_dim),  # the key norm's weight and bias
        Weights("indexer", shape.index_heads, shape.hidden_size),
    )


def _attention(shape: GlmShape) -> tuple[Weights, ...]:
    part, hidden, heads = "attention", shape.hidden_size, shape.heads
    return (
        Weights(part, shape.query_rank, hidden),
        vector("norms", shape.query_rank),
        Weights(part, heads * shape.head_dim, shape.query_rank, spread=Spread.TENSOR),
        Weights(part, shape.row_dim, hidden),
        vector("norms", shape.latent_rank),
        Weights(
            part,
            heads * (shape.nope_dim + shape.value_dim),
            shape.latent_rank,
            spread=Spread.TENSOR,
        ),
        Weights(part, hidden, heads * shape.value_dim, spread=Spread.TENSOR),
    )


def _dense(shape: GlmShape) -> tuple[Weights, ...]:
    matrices = 3  # gate, up, down
    return (
        Weights(
            "dense layers",
            shape.ffn_size,
            shape.hidden_size,
            copies=matrices,
            used=matrices,
            spread=Spread.TENSOR,
        ),
    )


def _experts(shape: GlmShape) -> tuple[Weights, ...]:
    matrices, hidden = 3, shape.hidden_size
    shared = matrices * shape.shared_experts
    return (
        Weights("router", shape.experts, hidden),
        vector("router", shape.experts),  # e_score_correction_bias
        Weights(
            "experts",
            shape.expert_ffn_size,
            hidden,
            copies=matrices * shape.experts,
            used=matrices * shape.experts_per_token,
            spread=Spread.EXPERT,
        ),
        Weights(
            "shared experts",
            shape.expert_ffn_size,
            hidden,
            copies=shared,
            used=shared,
            spread=Spread.TENSOR,
        ),
    )


def _mtp_weights(shape: GlmShape) -> tuple[Weights, ...]:
    """eh_proj over [embedding | hidden state], three norms, and a whole sparse decoder layer."""
    return (
        *(vector("norms", shape.hidden_size) for _ in ("enorm", "hnorm", "shared_head.norm")),
        Weights("joining matrix", shape.hidden_size, 2 * shape.hidden_size),
        *glm_layer_weights(shape, shape.layers),
    )
