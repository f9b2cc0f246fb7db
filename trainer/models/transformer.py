"""Megatron's TransformerConfig: what the model and the layout fix, what the user passes through."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from rlframe.config.owned import TRANSFORMER, TRANSFORMER_FIXED
from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError, nearest
from rlframe.model_shapes.dense import DenseShape
from trainer import defaults

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def transformer_config(
    fields: Mapping[str, Any],
    *,
    layout: LayoutConfig,
    dtype: str,
    passed: Mapping[str, Any],
    role: str,
) -> TransformerConfig:
    """The config of one role's model: what its family fixes (`fields`), its layout, and `passed`, fields
    of TransformerConfig by their own names.

    Raises UserError for a field that does not exist, that follows from another key, or that this model
    fixes, and with Megatron's own words for a value that it refuses.
    """
    _check_passed(passed, role)
    values = (
        dict(defaults.TRANSFORMER)
        | _read_dtypes(passed)
        | _common(layout, DTYPES[dtype])
        | dict(fields)
    )
    try:
        return TransformerConfig(**values)
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"trainer.{role}.transformer: Megatron refuses it: {error}") from error


def _check_passed(passed: Mapping[str, Any], role: str) -> None:
    owned, fixed = TRANSFORMER, TRANSFORMER_FIXED
    names = {f.name for f in dataclasses.fields(TransformerConfig)}
    allowed = names - owned.keys() - fixed.keys()
    for name in passed:
        key = f"trainer.{role}.transformer.{name}"
        if name in owned:
            raise UserError(f"{key}: set {owned[name].format(role=role)} instead.")
        if name in fixed:
            raise UserError(f"{key}: {fixed[name]}.")
        if name not in allowed:
            raise UserError(f"{key}: no such TransformerConfig field.{nearest(name, allowed)}")


def _read_dtypes(passed: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has no dtypes: `autocast_dtype: bfloat16` names one."""
    return {
        name: DTYPES[value] if name.endswith("dtype") and value in DTYPES else value
        for name, value in passed.items()
    }


def dense_fields(shape: DenseShape) -> dict[str, Any]:
    """What a Qwen3-type model fixes."""
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_size,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.kv_heads,
        "kv_channels": shape.head_dim,
        "layernorm_epsilon": shape.norm_eps,
        "init_method_std": shape.init_std,
        "qk_layernorm": True,
    }


def _common(layout: LayoutConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "add_qkv_bias": False,
        "activation_func": torch.nn.functional.silu,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        # Not Transformer Engine's: the switch makes Megatron's MLP call the layer spec's own module.
        "use_te_activation_func": True,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "virtual_pipeline_model_parallel_size": (
            layout.virtual_pipeline if layout.virtual_pipeline > 1 else None
        ),
        "sequence_parallel": layout.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # Weights are made on the CPU, uninitialised: the HF bridge fills every one of them.
        "use_cpu_initialization": True,
        "perform_initialization": False,
        # Packed micro-batches differ in length, so pipeline stages tell each other shapes.
        "variable_seq_lengths": layout.pipeline > 1,
    }
