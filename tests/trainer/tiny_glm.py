"""A GLM-5 small enough to check everything on: 9 layers, of which 0, 1, 2 and 6 own an indexer."""

from __future__ import annotations

from typing import Any

TINY_GLM: dict[str, Any] = {
    "model_type": "glm_moe_dsa",
    "vocab_size": 67,  # odd: two tensor-parallel ranks need padding
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,  # not the nope dimension
    "first_k_dense_replace": 3,
    "index_topk": 6,
    "index_head_dim": 16,
    "index_n_heads": 32,  # fewer make ties of exact zeros
    "index_topk_freq": 4,
    "index_skip_topk_offset": 3,
    "indexer_rope_interleave": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-6,  # transformers' norms inside attention have no other
    "initializer_range": 0.1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
