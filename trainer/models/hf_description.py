"""`config.json` of a checkpoint that is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.value_head import VALUE_BINS, value_labels

ARCHITECTURES = {
    ("qwen3", "policy"): "Qwen3ForCausalLM",
    ("qwen3", "critic"): "Qwen3ForSequenceClassification",
    ("glm_moe_dsa", "policy"): "GlmMoeDsaForCausalLM",
    ("glm_moe_dsa", "critic"): "GlmMoeDsaForSequenceClassification",
}


def hf_description(
    hf_config: Mapping[str, Any], *, role: str, dtype: torch.dtype, shape: ModelShape
) -> dict[str, Any]:
    """The config of what is written, which may be another role or dtype than what was loaded.

    An MTP layer that is not in `shape` is not in the checkpoint, and its config says so.
    """
    dropped = ["torch_dtype", "num_labels", "quantization_config", "id2label", "label2id"]
    dropped += [] if role == "critic" else [VALUE_BINS]
    kept = {k: v for k, v in hf_config.items() if k not in dropped}
    kept |= {
        "architectures": [ARCHITECTURES[hf_config["model_type"], role]],
        "dtype": str(dtype).removeprefix("torch."),
    }
    if "num_nextn_predict_layers" in kept:
        layers = shape.mtp_layers if isinstance(shape, GlmShape) else 0
        kept["num_nextn_predict_layers"] = layers if role == "policy" else 0
    if role == "critic":
        kept["id2label"] = value_labels(shape.value_outputs)
    return kept
