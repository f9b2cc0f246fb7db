"""Weights out of a running model: published to the engines, or written as a checkpoint.

Both are collective over the ranks of a role. Tensors reach rank 0 one after the other under their
Hugging Face names (`Exported.tensors`), and go straight into a mapped safetensors file.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

FILE = "model.safetensors"
SLOTS = 2
MAX_SHARD_BYTES = 5_000_000_000
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class Exported:
    """A model under its Hugging Face names, whatever trains it."""

    layout: Sequence[Layout]
    """Of the whole model, in the order of `tensors`; the same on every rank."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Collective: every rank iterates to the end; only rank 0 is given tensors, whole. One may be a view
    of a parameter: copy it before the next optimizer step."""

    def take_part(self) -> None:
        """On the ranks that write nothing."""
        for _ in self.tensors():
            pass


def tensor_layout(name: str, dtype: torch.dtype, shape: Sequence[int]) -> Layout:
    size = tuple(shape)
    return Layout(name, DTYPES[dtype], size, math.prod(size) * dtype.itemsize)


class WeightPublisher:
    """Publishes versions of one model into `SLOTS` directories in turn, rewritten in place.

    Version v goes to `<directory>/<v % SLOTS>`: an engine that still reads version v is not disturbed
    by v + 1. A directory without a manifest is not published, which it is while it is rewritten.
    """

    def __init__(self, exported: Exported) -> None:
        self._exported = exported
        self._writers: dict[Path, SafetensorsWriter] = {}

    def publish(self, version: int, directory: str) -> WeightManifest | None:
        """Collective; the manifest on rank 0, None elsewhere."""
        if dist.get_rank() != 0:
            self._exported.take_part()
            return None
        slot = Path(directory) / str(version % SLOTS)
        slot.mkdir(parents=True, exist_ok=True)
        (slot / MANIFEST).unlink(missing_ok=True)
        if slot not in self._writers:
            self._writers[slot] = SafetensorsWriter(slot / FILE, self._exported.layout)
        buffers = ((name, _bytes(tensor)) for name, tensor in self._exported.tensors())
        checksums = self._writers[slot].write(buffers)
        manifest = build_manifest(str(slot), version=version, checksums=checksums)
        write_manifest(manifest)
        return manifest


def write_checkpoint(
    exported: Exported,
    config: Mapping[str, Any],
    directory: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Collective: `config.json` and weights that transformers loads, at `directory` whole or not at all.

    Tensors go to their files one by one; a file holds `max_shard_bytes` at most, or one tensor. What is
    at `directory` already is replaced.
    """
    if dist.get_rank() == 0:
        target = Path(directory)
        staging = target.with_name(f".{target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        writer = ShardedWriter(staging, _shards(exported.layout, max_shard_bytes))
        for name, tensor in exported.tensors():
            writer.write(name, tensor)
        writer.finish()
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        replace_directory(staging, target)
    else:
        exported.take_part()
    dist.barrier()


def _shards(layout: Sequence[Layout], max_bytes: int) -> list[Shard]:
    tensors = {item.name: Stored(item.dtype, item.shape) for item in layout}
    return plan_shards(plan_items(tensors, "stored"), max_bytes=max_bytes)


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes as a numpy array; a view where the tensor lies contiguously on the CPU."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy()
