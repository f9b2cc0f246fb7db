"""Which family of models a Hugging Face config belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlframe.model_shapes import dense, glm
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.glm import GlmShape

ModelShape = DenseShape | GlmShape


def read_shape(hf_config: Mapping[str, Any]) -> ModelShape:
    """Raises UserError, with the key, for a config that no family here can express."""
    if hf_config.get("model_type") == glm.MODEL_TYPE:
        return GlmShape.from_hf(hf_config)
    return DenseShape.from_hf(hf_config)


def has_definition(hf_config: Mapping[str, Any]) -> bool:
    """Whether a family here can express it: what Megatron trains, and what `rlframe plan` knows."""
    return hf_config.get("model_type") in (glm.MODEL_TYPE, *dense.SUPPORTED)
