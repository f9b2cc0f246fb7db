"""The tensors of a Hugging Face checkpoint directory: found, checked, read one at a time.

A weight stored as FP8 has its block scales beside it, as `NAME_scale_inv`. They are one tensor here: its shape is
the weight's, and reading it multiplies them (in float32, so that casting to bfloat16 rounds once).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from rlframe.errors import UserError
from trainer.models.fp8_blocks import BLOCK, dequantise, scale_shape
from trainer.models.safetensors_files import StoredTensor, stored_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SCALE_SUFFIX = "_scale_inv"
FP8 = "F8_E4M3"


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
        self._stored: dict[str, StoredTensor] = {}
        for file in self._files(index):
            self._stored.update(stored_tensors(file))
        if index.exists():
            self._check_index(index)
        self._scales = self._paired()
        self.shapes: dict[str, tuple[int, ...]] = {
            name: stored.shape for name, stored in self._stored.items() if not self._is_scale(name)
        }

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

    def _paired(self) -> dict[str, StoredTensor]:
        """Per FP8 weight its scales. Raises UserError, naming all, where they are missing or of another shape."""
        scales, wrong = {}, []
        for name, stored in self._stored.items():
            if stored.dtype != FP8:
                continue
            scale = self._stored.get(name + SCALE_SUFFIX)
            if scale is None:
                wrong.append(
                    f"{stored.file}: tensor '{name}' is FP8, but has no '{name}{SCALE_SUFFIX}'."
                )
            elif len(stored.shape) != 2 or scale.shape != scale_shape(stored.shape):
                wrong.append(
                    f"{scale.file}: tensor '{name}{SCALE_SUFFIX}' has shape {list(scale.shape)}; a weight of "
                    f"shape {list(stored.shape)} has one scale for each block of {BLOCK} x {BLOCK}."
                )
            else:
                scales[name] = scale
        if wrong:
            raise UserError("\n".join(wrong))
        return scales

    def _is_scale(self, name: str) -> bool:
        return name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in self._scales

    def _check_index(self, index: Path) -> None:
        for name, file in _weight_map(index).items():
            stored = self._stored.get(name)
            if stored is None or stored.file != self.directory / file:
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
        wrong = self.problems(expected, unused=unused, why_not=why_not)
        if wrong:
            raise UserError("\n".join(wrong))

    def problems(
        self,
        expected: Mapping[str, tuple[int, ...]],
        *,
        unused: frozenset[str],
        why_not: Callable[[str], str] = lambda name: "",
    ) -> list[str]:
        """What `check` would say, one line a tensor."""
        wrong = []
        for name, shape in expected.items():
            if name not in self.shapes:
                wrong.append(f"{self.where}: tensor '{name}' is missing.")
            elif self.shapes[name] != shape:
                wrong.append(
                    f"{self._stored[name].file}: tensor '{name}' has shape {list(self.shapes[name])}; "
                    f"the model's config makes it {list(shape)}."
                )
        for name in self.shapes:
            if name not in expected and name not in unused:
                wrong.append(
                    f"{self.file_of(name)}: tensor '{name}' has no place in this model.{why_not(name)}"
                )
        return wrong

    def file_of(self, name: str) -> Path:
        return self._stored[name].file

    def stored(self, name: str) -> StoredTensor:
        """As it lies on the disk."""
        return self._stored[name]

    def scales(self, name: str) -> StoredTensor | None:
        """Of a weight stored as FP8."""
        return self._scales.get(name)

    def read_stored(self, name: str, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Rows of a tensor, and of an FP8 weight the scales of those rows, as they lie on the disk."""
        tensor, scales = self._stored[name].read(rows), self._scales.get(name)
        if scales is None:
            return {name: tensor}
        return {name: tensor, name + SCALE_SUFFIX: scales.read(_blocks(rows, tensor.shape[0]))}

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """One tensor, or rows of it, in its stored dtype; of an FP8 weight float32.

        Rows of an FP8 weight begin at a multiple of 128.
        """
        stored = self.read_stored(name, rows)
        if name not in self._scales:
            return stored[name]
        return dequantise(stored[name], stored[name + SCALE_SUFFIX])


def _blocks(rows: slice, count: int) -> slice:
    """The blocks of `count` rows from the start of `rows`."""
    first = (rows.start or 0) // BLOCK
    return slice(first, first + -(-count // BLOCK))


def layer_words(name: str) -> str:
    """` of layer 3` for a tensor of one; empty for others."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return f" of layer {found[1]}" if found else ""


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not a safetensors index: {error}") from error
    for name, file in weight_map.items():
        if Path(file).name != file:
            raise UserError(f"{index}: tensor '{name}' points outside the directory: {file}")
    return dict(weight_map)
