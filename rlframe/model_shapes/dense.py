"""What a Hugging Face config says about a Qwen3-type dense model, checked against the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError, nearest
from rlframe.model_shapes.fields import positive_integer, rope_theta, rope_type
from rlframe.model_shapes.value_head import value_outputs

SUPPORTED = ("qwen3",)


@dataclass(frozen=True, slots=True)
class DenseShape:
    """Sizes of the model, by rlframe's own names.

    Example (Qwen3-0.6B): vocab_size=151936, hidden_size=1024, ffn_size=3072, layers=28, heads=16,
    kv_heads=8, head_dim=128, norm_eps=1e-6, rope_theta=1e6, tied_embeddings=True
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    tied_embeddings: bool
    max_positions: int
    init_std: float
    value_outputs: int = 1  # of a critic's head

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any]) -> DenseShape:
        """Raises UserError, with the key, for a config that this model cannot express."""
        _refuse_what_is_not_built(hf_config)
        heads = positive_integer(hf_config, "num_attention_heads")
        hidden_size = positive_integer(hf_config, "hidden_size")
        return cls(
            vocab_size=positive_integer(hf_config, "vocab_size"),
            hidden_size=hidden_size,
            ffn_size=positive_integer(hf_config, "intermediate_size"),
            layers=positive_integer(hf_config, "num_hidden_layers"),
            heads=heads,
            kv_heads=positive_integer(hf_config, "num_key_value_heads", heads),
            head_dim=positive_integer(hf_config, "head_dim", 128),
            norm_eps=float(hf_config.get("rms_norm_eps", 1e-6)),
            rope_theta=rope_theta(hf_config),
            tied_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
            max_positions=positive_integer(hf_config, "max_position_embeddings", 32768),
            init_std=float(hf_config.get("initializer_range", 0.02)),
            value_outputs=value_outputs(hf_config),
        )

    def check_layout(self, layout: LayoutConfig, role: str) -> None:
        """Raises UserError if the sizes do not divide over the ranks."""
        refuse_glm_sizes(layout, f"trainer.{role}.layout")
        for name, size in (
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("intermediate_size", self.ffn_size),
        ):
            if size % layout.tensor:
                raise UserError(
                    f"trainer.{role}.layout.tensor={layout.tensor} does not divide the model's {name}={size}."
                )
        if self.layers % layout.pipeline:
            raise UserError(
                f"trainer.{role}.layout.pipeline={layout.pipeline} does not divide the model's "
                f"num_hidden_layers={self.layers}."
            )
        if layout.sequence_parallel and layout.tensor == 1:
            raise UserError(
                f"trainer.{role}.layout.sequence_parallel=true needs trainer.{role}.layout.tensor > 1."
            )

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """The vocabulary rounded up so that every tensor-parallel rank holds as many rows."""
        return -(-self.vocab_size // tensor_parallel) * tensor_parallel


def refuse_glm_sizes(layout: LayoutConfig, key: str) -> None:
    """Raises UserError for a way to split a model that only GLM has here."""
    for name, given in (
        ("expert", layout.expert > 1),
        ("virtual_pipeline", layout.virtual_pipeline > 1),
        ("pipeline_layers", bool(layout.pipeline_layers)),
    ):
        if given:
            raise UserError(
                f"{key}.{name} is for models of type glm_moe_dsa; this one can be split by data, tensor, "
                "context and pipeline."
            )


def _refuse_what_is_not_built(hf_config: Mapping[str, Any]) -> None:
    model_type = hf_config.get("model_type")
    if model_type not in SUPPORTED:
        raise UserError(
            f"model type '{model_type}' has no Megatron definition here.{nearest(str(model_type), SUPPORTED)} "
            "trainer=deepspeed trains any causal language model of transformers."
        )
    refused = {
        "attention_bias": bool(hf_config.get("attention_bias", False)),
        "use_sliding_window": bool(hf_config.get("use_sliding_window", False)),
        "rope_parameters.rope_type": rope_type(hf_config) != "default",
        "hidden_act": hf_config.get("hidden_act", "silu") != "silu",
    }
    for key, present in refused.items():
        if present:
            raise UserError(f"model config: {key} other than Qwen3's default is not supported.")
