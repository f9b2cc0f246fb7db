"""The mean of several checkpoints of one architecture, tensor by tensor: the simplest way of merging experts.

No torch: files are mapped, one tensor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlframe import weights
from rlframe.errors import UserError
from rlframe.weights import Layout, SafetensorsWriter, StoredTensor

FILE = "model.safetensors"


def write_average(directories: Sequence[str], target: Path) -> None:
    """Writes `target/model.safetensors` in the checkpoints' own dtypes; UserError where they do not fit together."""
    opened = [weights.open_directory(directory) for directory in directories]
    first = opened[0]
    for directory, tensors in zip(directories, opened, strict=True):
        _check_same(directories[0], first, directory, tensors)
    target.mkdir(parents=True, exist_ok=True)
    layout = [Layout(n, t.dtype, t.shape, len(t.data)) for n, t in first.items()]
    writer = SafetensorsWriter(target / FILE, layout)
    writer.write(_averages(opened))
    writer.close()


def _averages(opened: Sequence[Mapping[str, StoredTensor]]) -> Iterator[tuple[str, Any]]:
    for name, like in opened[0].items():
        total = np.zeros(len(to_float32(like)), np.float64)
        for tensors in opened:
            total += to_float32(tensors[name])
        yield name, _from_float((total / len(opened)).astype(np.float32), like.dtype)


def to_float32(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """Flat. UserError for a dtype that is no plain float."""
    match tensor.dtype:
        case "F32":
            return tensor.data.view(np.float32)
        case "F16":
            return tensor.data.view(np.float16).astype(np.float32)
        case "BF16":
            return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise UserError(f"weights of dtype {tensor.dtype} can't be averaged: F32, BF16 or F16")


def _from_float(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":  # round to nearest, ties to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype(np.float16) if dtype == "F16" else values


def _check_same(
    where: str,
    ours: Mapping[str, StoredTensor],
    directory: str,
    theirs: Mapping[str, StoredTensor],
) -> None:
    if {n: (t.shape, t.dtype) for n, t in ours.items()} != {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }:
        raise UserError(f"'{directory}' has other tensors than '{where}': they can't be averaged")
