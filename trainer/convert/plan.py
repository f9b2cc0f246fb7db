"""What a conversion writes, decided before anything is: which tensors, in which dtype, in which file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.models.fp8_blocks import BLOCK, scale_shape
from trainer.models.hf_files import FP8, SCALE_SUFFIX
from trainer.models.hf_names import Size
from trainer.models.safetensors_files import num_bytes

How = Literal["copy", "cast", "quantise"]
Target = Literal["stored", "float32", "bfloat16", "float8"]
NAMES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float8": "BF16"}
"""What a tensor that is not quantised becomes."""
KEEPS_FLOAT32 = ("e_score_correction_bias",)
NEVER_QUANTISED = (".indexer.weights_proj.weight", ".mlp.gate.weight", ".eh_proj.weight")
"""Small matrices that decide something, which the published FP8 checkpoints keep in BF16; with embeddings, the
output head and all vectors."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of a source's tensor without reading it."""

    dtype: str
    """As safetensors names it; FP8 where it has block scales."""
    shape: Size


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of the source, and what becomes of it."""

    name: str
    shape: Size
    how: How
    layout: dict[str, tuple[str, Size]]
    """Dtype and shape of what is written: one tensor, or an FP8 weight and its scales."""

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes(dtype, shape) for dtype, shape in self.layout.values())


@dataclass(frozen=True, slots=True)
class Shard:
    """One file."""

    file: str
    items: tuple[Item, ...]
    layout: dict[str, tuple[str, Size]] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)


def plan_items(tensors: Mapping[str, Stored], target: Target) -> list[Item]:
    return [_item(name, stored, target) for name, stored in tensors.items()]


def is_quantised(name: str, shape: Size) -> bool:
    """Whether an FP8 checkpoint has this tensor in FP8: the matrices of the layers."""
    matrix = len(shape) == 2 and name.startswith("model.layers.") and name.endswith(".weight")
    return matrix and not name.endswith(NEVER_QUANTISED)


def _item(name: str, stored: Stored, target: Target) -> Item:
    shape = stored.shape
    quantised = (stored.dtype == FP8) if target == "stored" else False
    if target == "float8":
        quantised = is_quantised(name, shape)
    if quantised:
        layout = {name: (FP8, shape), name + SCALE_SUFFIX: ("F32", scale_shape(shape))}
        return Item(name, shape, "copy" if stored.dtype == FP8 else "quantise", layout)
    dtype = stored.dtype if target == "stored" else NAMES[target]
    if name.endswith(KEEPS_FLOAT32):
        dtype = "F32"
    how: How = "copy" if dtype == stored.dtype else "cast"
    return Item(name, shape, how, {name: (dtype, shape)})


def plan_shards(items: Iterable[Item], *, max_bytes: int) -> list[Shard]:
    """In order; a file holds at most `max_bytes`, or one tensor that is larger."""
    groups: list[list[Item]] = [[]]
    held = 0
    for item in items:
        if groups[-1] and held + item.num_bytes > max_bytes:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += item.num_bytes
    return [
        Shard(
            file_name(number, len(groups)),
            tuple(group),
            {name: described for item in group for name, described in item.layout.items()},
        )
        for number, group in enumerate(groups, start=1)
    ]


def file_name(number: int, count: int) -> str:
    """As transformers names them."""
    if count == 1:
        return "model.safetensors"
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def weight_index(shards: Sequence[Shard]) -> dict[str, Any]:
    """`model.safetensors.index.json`."""
    return {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": {name: shard.file for shard in shards for name in shard.layout},
    }


def described(
    hf_config: Mapping[str, Any], items: Sequence[Item], *, target: Target, drop_mtp: bool
) -> dict[str, Any]:
    """`config.json` of what is written."""
    kept = {key: value for key, value in hf_config.items() if key != "torch_dtype"}
    if target != "stored":
        kept.pop("quantization_config", None)
        kept["dtype"] = "bfloat16" if target == "float8" else target
    if target == "float8":
        matrices = (item for item in items if len(item.shape) == 2 and len(item.layout) == 1)
        kept["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": [m.name.removesuffix(".weight") for m in matrices],
        }
    if drop_mtp and "num_nextn_predict_layers" in kept:
        kept["num_nextn_predict_layers"] = 0
    return kept
