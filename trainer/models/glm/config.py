"""What a GLM-5 model fixes of Megatron's TransformerConfig."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.pipeline import Chunk


def glm_fields(shape: GlmShape, chunks: Sequence[Chunk], *, expert_ranks: int) -> dict[str, Any]:
    """Attention is our own module: Megatron's multi-latent attention is not switched on."""
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_size,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.heads,
        "kv_channels": shape.value_dim,
        "layernorm_epsilon": shape.norm_eps,
        "init_method_std": shape.init_std,
        "pipeline_model_parallel_layout": _pipeline(chunks) if len(chunks) > 1 else None,
        **(_experts(shape, expert_ranks) if shape.has_experts else {}),
    }


def _pipeline(chunks: Sequence[Chunk]) -> list[list[str]]:
    return [
        ["embedding"] * c.is_first + ["decoder"] * len(c.layers) + ["loss"] * c.is_last
        for c in chunks
    ]


def _experts(shape: GlmShape, ranks: int) -> dict[str, Any]:
    """Sigmoid scores, chosen with a bias that no gradient trains (`noaux_tc`), no auxiliary loss."""
    return {
        "num_moe_experts": shape.experts,
        "moe_router_topk": shape.experts_per_token,
        "moe_layer_freq": [int(shape.is_sparse(layer)) for layer in range(shape.layers)],
        "moe_ffn_hidden_size": shape.expert_ffn_size,
        "moe_shared_expert_intermediate_size": (
            shape.expert_ffn_size * shape.shared_experts if shape.shared_experts else None
        ),
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_load_balancing_type": "none",
        "moe_router_topk_scaling_factor": shape.routed_scale,
        "moe_router_dtype": "fp32",
        "moe_aux_loss_coeff": 0.0,
        "expert_model_parallel_size": ranks,
        "expert_tensor_parallel_size": 1,
    }
