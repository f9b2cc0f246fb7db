"""The tensors of a Hugging Face checkpoint directory: found, checked, read one at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rlframe.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = ("F64", "F32", "BF16", "F16")
_MAX_HEADER_BYTES = 100_000_000


class HfCheckpoint:
    """Names, shapes and values of a checkpoint's tensors; nothing is read before it is asked for.

    Raises UserError, naming the file, for a directory without safetensors, a broken file, and an index
    that does not fit its files.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise UserError(f"no checkpoint directory at {self.directory}.")
        index = self.directory / INDEX
        self.where = index if index.exists() else self.directory / SINGLE
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files(index):
            for name, tensor in _header(file).items():
                self._add(name, tensor, file)
        if index.exists():
            self._check_index(index)

    def _files(self, index: Path) -> list[Path]:
        if index.exists():
            files = sorted({self.directory / f for f in _weight_map(index).values()})
        else:
            files = [self.directory / SINGLE]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"{file} is missing: a checkpoint needs {SINGLE}, or {INDEX} and the files it names."
                )
        return files

    def _add(self, name: str, tensor: Mapping[str, Any], file: Path) -> None:
        if tensor["dtype"] not in _FLOATS:
            raise UserError(
                f"{file}: tensor '{name}' is {tensor['dtype']}; only {', '.join(_FLOATS)} can be loaded."
            )
        self._file_of[name] = file
        self.shapes[name] = tuple(tensor["shape"])

    def _check_index(self, index: Path) -> None:
        for name, file in _weight_map(index).items():
            if self._file_of.get(name) != self.directory / file:
                raise UserError(f"{index}: tensor '{name}' should be in {file}, and is not.")

    def check(
        self,
        expected: Mapping[str, tuple[int, ...]],
        *,
        unused: frozenset[str],
        why_not: Callable[[str], str] = lambda name: "",
    ) -> None:
        """Raises UserError unless exactly the `expected` tensors are here, beside `unused` ones.

        The message names every tensor that does not fit, one a line; `why_not(name)` may say why one has
        no place.
        """
        wrong = []
        for name, shape in expected.items():
            if name not in self.shapes:
                wrong.append(f"{self.where}: tensor '{name}' is missing.")
            elif self.shapes[name] != shape:
                wrong.append(
                    f"{self._file_of[name]}: tensor '{name}' has shape {list(self.shapes[name])}; "
                    f"the model's config makes it {list(shape)}."
                )
        for name, file in self._file_of.items():
            if name not in expected and name not in unused:
                wrong.append(f"{file}: tensor '{name}' has no place in this model.{why_not(name)}")
        if wrong:
            raise UserError("\n".join(wrong))

    def file_of(self, name: str) -> Path:
        return self._file_of[name]

    def read(self, name: str) -> Tensor:
        """One whole tensor."""
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not a safetensors index: {error}") from error
    for name, file in weight_map.items():
        if Path(file).name != file:
            raise UserError(f"{index}: tensor '{name}' points outside the directory: {file}")
    return dict(weight_map)


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The tensors that a safetensors file declares; its length must be what they need."""
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
    return header
