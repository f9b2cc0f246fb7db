"""A Megatron model as what leaves it: Hugging Face names, and the config of what is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlframe.weights import Layout
from trainer import weights
from trainer.models.hf_bridge import export_hf
from trainer.models.hf_description import hf_description
from trainer.models.language_model import model_chunks
from trainer.models.model_names import model_entries


def exported(model: torch.nn.Module) -> weights.Exported:
    return weights.Exported(_layout(model), lambda: export_hf(model))


def write_checkpoint(
    model: torch.nn.Module,
    hf_config: Mapping[str, Any],
    directory: str,
    *,
    max_shard_bytes: int = weights.MAX_SHARD_BYTES,
) -> None:
    """As `trainer.weights.write_checkpoint`. The critic is written as a sequence classifier with one label,
    its value head as `score.weight`."""
    described = _described(model, hf_config)
    weights.write_checkpoint(exported(model), described, directory, max_shard_bytes=max_shard_bytes)


def _layout(model: torch.nn.Module) -> list[Layout]:
    ours, chunk = next(model.parameters()).dtype, model_chunks(model)[0]
    layout = []
    for entry in model_entries(chunk.shape, role=chunk.role):
        dtype = torch.float32 if entry.keeps_float32 else ours
        for name, size in zip(entry.tensors, entry.shapes, strict=True):
            layout.append(weights.tensor_layout(name, dtype, size))
    return layout


def _described(model: torch.nn.Module, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    chunk = model_chunks(model)[0]
    dtype = next(model.parameters()).dtype
    return hf_description(hf_config, role=chunk.role, dtype=dtype, shape=chunk.shape)
