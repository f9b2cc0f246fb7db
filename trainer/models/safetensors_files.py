"""safetensors files by plain reads and writes at offsets: memory is what is asked for, never a file's mapping.

The `safetensors` package maps files; of a checkpoint of hundreds of gigabytes the mapped pages then count as
the process's memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlframe.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    file: Path
    dtype: str
    """As safetensors names it: BF16, F8_E4M3, ..."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    @property
    def row_bytes(self) -> int:
        """Of one index of the first dimension; of a scalar, all."""
        numbers = 1
        for size in self.shape[1:]:
            numbers *= size
        return numbers * DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        return self.row_bytes * (self.shape[0] if self.shape else 1)

    def read(self, rows: slice = slice(None)) -> Tensor:
        """A new tensor with these rows, or all."""
        start, stop, _ = rows.indices(self.shape[0] if self.shape else 1)
        data = torch.empty((stop - start) * self.row_bytes, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.row_bytes)
            view, done = data.numpy().data, 0
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise UserError(f"{self.file} is cut short.")
                done += got
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return data.view(DTYPES[self.dtype]).view(shape)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """What a file declares. Raises UserError for a broken file, and for a dtype that is not a float."""
    header, start = read_header(file)
    found = {}
    for name, described in header.items():
        if described["dtype"] not in DTYPES:
            raise UserError(
                f"{file}: tensor '{name}' is {described['dtype']}; only {', '.join(DTYPES)} can be loaded."
            )
        begin = described["data_offsets"][0]
        shape = tuple(described["shape"])
        found[name] = StoredTensor(file, described["dtype"], shape, start + begin)
    return found


def read_header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors that a safetensors file declares, and where its data begins; its length must be right."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(f"{file} is not a whole safetensors file.")
        text = stream.read(length)
    try:
        header = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a safetensors file: {error}") from error
    if size != 8 + length + end:
        raise UserError(f"{file} has {size} bytes; its header describes {8 + length + end}.")
    return header, 8 + length


class SafetensorsFile:
    """One file, laid out at once, whose tensors are then written at their places in any order.

    It takes its name only when it is complete and on the disk (`finish`); until then it is `NAME.partial`.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """`layout`: dtype, as safetensors names it, and shape of each tensor."""
        self.path = path
        header, self._offsets, total = file_layout(layout)
        self._partial = path.with_name(path.name + ".partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._descriptor = os.open(self._partial, flags, 0o644)
        os.ftruncate(self._descriptor, total)
        self._write(header, 0)

    def write(self, name: str, part: Tensor, *, at_byte: int = 0) -> None:
        """`part` of the tensor's bytes, from its `at_byte` on."""
        data = part.detach().cpu().contiguous().view(-1).view(torch.uint8)
        self._write(data.numpy().data, self._offsets[name] + at_byte)

    def _write(self, data: bytes | memoryview, position: int) -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], position + done)

    def finish(self) -> None:
        os.fsync(self._descriptor)
        self.close()
        self._partial.rename(self.path)

    def close(self) -> None:
        """Without `finish` the file stays unfinished."""
        os.close(self._descriptor)


def file_layout(
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[bytes, dict[str, int], int]:
    """A file's first bytes, where each tensor begins in it, and its size."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, begins = 0, {}
    for name, (dtype, shape) in layout.items():
        begins[name] = position
        end = position + num_bytes(dtype, shape)
        described[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {name: start + begin for name, begin in begins.items()}
    return struct.pack("<Q", len(text)) + text, offsets, start + position


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    count = DTYPES[dtype].itemsize
    for size in shape:
        count *= size
    return count
