"""The GLM-5 family (`glm_moe_dsa`): latent attention, sparse attention with shared indexers, experts, MTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlframe.errors import UserError
from rlframe.model_shapes.fields import count, positive_integer, rope_theta, rope_type
from rlframe.model_shapes.index_schedule import indexer_types, source_layers
from rlframe.model_shapes.value_head import value_outputs

MODEL_TYPE = "glm_moe_dsa"


@dataclass(frozen=True, slots=True)
class GlmShape:
    """Sizes and schedules by rlframe's own names; the comments give GLM-5.2's values."""

    vocab_size: int  # 154,880
    hidden_size: int  # 6,144
    layers: int  # 78, without the MTP layer
    heads: int  # 64
    query_rank: int  # 2,048: q_lora_rank
    latent_rank: int  # 512: kv_lora_rank
    nope_dim: int  # 192: of a head, not rotated
    rope_dim: int  # 64: of a head, rotated; keys share one
    value_dim: int  # 256
    dense_layers: int  # 3: the first layers have a dense feed-forward part
    ffn_size: int  # 12,288, of the dense layers
    expert_ffn_size: int  # 2,048
    experts: int  # 256
    experts_per_token: int  # 8
    shared_experts: int  # 1
    routed_scale: float  # 2.5
    index_heads: int  # 32
    index_dim: int  # 128
    index_top_k: int  # 2,048
    indexer_types: tuple[bool, ...]  # per layer, whether it owns an indexer
    mtp_layers: int  # 1, stored as layer `layers`
    mtp_index_share: bool  # true: IndexShare and KVShare over MTP steps; false: GLM-5.1
    norm_eps: float  # 1e-5; also of the norms inside attention, as SGLang and Megatron have it
    rope_theta: float  # 8e6
    max_positions: int  # 1,048,576
    tied_embeddings: bool
    init_std: float
    value_outputs: int = 1  # of a critic's head

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any]) -> GlmShape:
        """Raises UserError, with the key, for a config that this model cannot express."""
        _refuse_what_is_not_built(hf_config)
        layers = positive_integer(hf_config, "num_hidden_layers")
        expert_ffn_size = positive_integer(hf_config, "moe_intermediate_size")
        return cls(
            vocab_size=positive_integer(hf_config, "vocab_size"),
            hidden_size=positive_integer(hf_config, "hidden_size"),
            layers=layers,
            heads=positive_integer(hf_config, "num_attention_heads"),
            query_rank=positive_integer(hf_config, "q_lora_rank"),
            latent_rank=positive_integer(hf_config, "kv_lora_rank"),
            nope_dim=positive_integer(hf_config, "qk_nope_head_dim"),
            rope_dim=positive_integer(hf_config, "qk_rope_head_dim"),
            value_dim=positive_integer(hf_config, "v_head_dim"),
            dense_layers=_dense_layers(hf_config, layers),
            ffn_size=positive_integer(hf_config, "intermediate_size"),
            expert_ffn_size=expert_ffn_size,
            experts=positive_integer(hf_config, "n_routed_experts"),
            experts_per_token=positive_integer(hf_config, "num_experts_per_tok"),
            shared_experts=count(hf_config, "n_shared_experts", 1),
            routed_scale=float(hf_config.get("routed_scaling_factor", 2.5)),
            index_heads=positive_integer(hf_config, "index_n_heads"),
            index_dim=positive_integer(hf_config, "index_head_dim"),
            index_top_k=positive_integer(hf_config, "index_topk"),
            indexer_types=indexer_types(hf_config, layers),
            mtp_layers=count(hf_config, "num_nextn_predict_layers", 0),
            mtp_index_share=bool(hf_config.get("index_share_for_mtp_iteration", False)),
            norm_eps=float(hf_config.get("rms_norm_eps", 1e-5)),
            rope_theta=rope_theta(hf_config),
            max_positions=positive_integer(hf_config, "max_position_embeddings", 202752),
            tied_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
            init_std=float(hf_config.get("initializer_range", 0.02)),
            value_outputs=value_outputs(hf_config),
        )

    @property
    def head_dim(self) -> int:
        """Of queries and keys, expanded; the softmax scale is its -1/2 power."""
        return self.nope_dim + self.rope_dim

    @property
    def row_dim(self) -> int:
        """Of one cached row: latent, then the rotated key part."""
        return self.latent_rank + self.rope_dim

    @property
    def source_layers(self) -> tuple[int, ...]:
        """Per layer, the layer whose ids it uses: itself where it owns an indexer."""
        return source_layers(self.indexer_types)

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """The vocabulary rounded up so that every tensor-parallel rank holds as many rows."""
        return -(-self.vocab_size // tensor_parallel) * tensor_parallel

    @property
    def has_experts(self) -> bool:
        return self.dense_layers < self.layers or self.mtp_layers > 0

    def is_sparse(self, layer: int) -> bool:
        """Whether the feed-forward part of `layer` is made of experts; the MTP layer's is."""
        return layer >= self.dense_layers


def _dense_layers(hf_config: Mapping[str, Any], layers: int) -> int:
    """`mlp_layer_types` is read first; only dense layers before sparse ones can be expressed."""
    types = hf_config.get("mlp_layer_types")
    if types is None:
        return min(count(hf_config, "first_k_dense_replace", 3), layers)
    dense = list(types).count("dense")
    if list(types) != ["dense"] * dense + ["sparse"] * (layers - dense):
        raise UserError(
            f"model config: mlp_layer_types must be {layers} words, 'dense' ones before 'sparse' ones, "
            f"not {list(types)}."
        )
    return dense


def _refuse_what_is_not_built(hf_config: Mapping[str, Any]) -> None:
    if hf_config.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"model config: model_type is {hf_config.get('model_type')!r}, not '{MODEL_TYPE}'."
        )
    theirs: dict[str, tuple[Any, ...]] = {
        "attention_bias": (False,),
        "hidden_act": ("silu",),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "n_group": (1, None),
        "topk_group": (1, None),
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
        "indexer_rope_interleave": (True,),
    }
    for key, allowed in theirs.items():
        value = hf_config.get(key, allowed[0])
        if value not in allowed:
            raise UserError(
                f"model config: {key}={value!r} is not supported by '{MODEL_TYPE}'; it is {allowed[0]!r} in GLM-5."
            )
    if rope_type(hf_config) != "default":
        raise UserError(
            f"model config: rope_type={rope_type(hf_config)!r} is not supported; GLM-5 has 'default'."
        )
    # Megatron's router normalises the gates of several experts, and leaves that of one alone.
    if (
        hf_config.get("norm_topk_prob", True) is not True
        or positive_integer(hf_config, "num_experts_per_tok") < 2
    ):
        raise UserError(
            "model config: GLM-5's gates are normalised over the experts of a token: norm_topk_prob must "
            "be true, num_experts_per_tok 2 or more."
        )
    mtp = count(hf_config, "num_nextn_predict_layers", 0)
    if mtp > 1:
        raise UserError(
            f"model config: num_nextn_predict_layers={mtp}; GLM-5 has one MTP layer, shared over steps."
        )
