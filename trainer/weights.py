"""Weights out of a running model: published to the engines, or written as a checkpoint.

Both are collective over the ranks of a role. Tensors reach rank 0 one after the other under their
Hugging Face names (`hf_bridge.export_hf`), and go straight into a mapped safetensors file.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlframe.durable_files import replace_directory
from rlframe.types import WeightManifest
from rlframe.weights import MANIFEST, Layout, SafetensorsWriter, build_manifest, write_manifest
from trainer.convert.plan import Shard, Stored, plan_items, plan_shards
from trainer.convert.sharded_writer import ShardedWriter
from trainer.models.hf_bridge import export_hf
from trainer.models.hf_description import hf_description
from trainer.models.language_model import model_chunks
from trainer.models.model_names import model_entries

FILE = "model.safetensors"
SLOTS = 2
MAX_SHARD_BYTES = 5_000_000_000
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


class WeightPublisher:
    """Publishes versions of one model into `SLOTS` directories in turn, rewritten in place.

    Version v goes to `<directory>/<v % SLOTS>`: an engine that still reads version v is not disturbed
    by v + 1. A directory without a manifest is not published, which it is while it is rewritten.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._writers: dict[Path, SafetensorsWriter] = {}

    def publish(self, version: int, directory: str) -> WeightManifest | None:
        """Collective; the manifest on rank 0, None elsewhere."""
        if dist.get_rank() != 0:
            _take_part(self._model)
            return None
        slot = Path(directory) / str(version % SLOTS)
        slot.mkdir(parents=True, exist_ok=True)
        (slot / MANIFEST).unlink(missing_ok=True)
        if slot not in self._writers:
            self._writers[slot] = SafetensorsWriter(slot / FILE, _layout(self._model))
        checksums = self._writers[slot].write(_buffers(self._model))
        manifest = build_manifest(str(slot), version=version, checksums=checksums)
        write_manifest(manifest)
        return manifest


def write_checkpoint(
    model: torch.nn.Module,
    hf_config: Mapping[str, Any],
    directory: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Collective: config and weights that transformers loads, at `directory` whole or not at all.

    Tensors go to their files one by one; a file holds `max_shard_bytes` at most, or one tensor. What is at `directory` already is replaced. The critic is written as a sequence classifier with
    one label, its value head as `score.weight`.
    """
    if dist.get_rank() == 0:
        target = Path(directory)
        staging = target.with_name(f".{target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        writer = ShardedWriter(staging, _shards(model, max_shard_bytes))
        for name, tensor in export_hf(model):
            writer.write(name, tensor)
        writer.finish()
        config = json.dumps(_described(model, hf_config), indent=2) + "\n"
        (staging / "config.json").write_text(config)
        replace_directory(staging, target)
    else:
        _take_part(model)
    dist.barrier()


def _take_part(model: torch.nn.Module) -> None:
    for _ in export_hf(model):
        pass


def _shards(model: torch.nn.Module, max_bytes: int) -> list[Shard]:
    tensors = {item.name: Stored(item.dtype, item.shape) for item in _layout(model)}
    return plan_shards(plan_items(tensors, "stored"), max_bytes=max_bytes)


def _layout(model: torch.nn.Module) -> list[Layout]:
    ours, chunk = next(model.parameters()).dtype, model_chunks(model)[0]
    layout = []
    for entry in model_entries(chunk.shape, role=chunk.role):
        dtype = torch.float32 if entry.keeps_float32 else ours
        for name, size in zip(entry.tensors, entry.shapes, strict=True):
            layout.append(Layout(name, DTYPES[dtype], size, math.prod(size) * dtype.itemsize))
    return layout


def _buffers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, _bytes(tensor)) for name, tensor in export_hf(model))


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes as a numpy array; a view where the tensor lies contiguously on the CPU."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy()


def _described(model: torch.nn.Module, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    chunk = model_chunks(model)[0]
    dtype = next(model.parameters()).dtype
    return hf_description(hf_config, role=chunk.role, dtype=dtype, shape=chunk.shape)
