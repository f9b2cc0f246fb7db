"""Single tensors out of the training state that a run saved, without building the model or starting ranks.

Megatron's `torch_dist` format is torch's distributed checkpoint: each tensor is known by its place in the whole
model and lies in pieces, one or more for each rank that saved it. Experts are stacked in one tensor, and in a
dense model the layers are.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from rlframe.errors import UserError


class SavedState:
    """The model's part of a checkpoint directory of one role. Raises UserError for a broken one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self._metadata = FileSystemReader(directory).read_metadata()
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"the checkpoint '{directory}' can't be read: {error}") from error

    def read(self, parameter: str) -> Tensor:
        """A parameter by its name in the model on one rank (`decoder.layers.3.mlp.router.weight`)."""
        key, index = self._place(parameter)
        stored = self._stored(key)
        assert stored is not None
        size = tuple(stored.size)
        whole = torch.empty(size if index is None else size[1:], dtype=stored.properties.dtype)
        for chunk in stored.chunks:
            self._copy(key, chunk, whole, index)
        return whole

    def dtype(self, parameter: str) -> torch.dtype:
        key, _ = self._place(parameter)
        stored = self._stored(key)
        assert stored is not None
        return stored.properties.dtype

    def has(self, parameter: str) -> bool:
        return any(self._stored(key) is not None for key, _ in _places(parameter))

    def _place(self, parameter: str) -> tuple[str, int | None]:
        for key, index in _places(parameter):
            if self._stored(key) is not None:
                return key, index
        raise UserError(f"the checkpoint '{self.directory}' has no '{parameter}'")

    def _stored(self, key: str) -> TensorStorageMetadata | None:
        stored = self._metadata.state_dict_metadata.get(key)
        return stored if isinstance(stored, TensorStorageMetadata) else None

    def _copy(
        self, key: str, chunk: ChunkStorageMetadata, whole: Tensor, index: int | None
    ) -> None:
        """One piece to its place, if it has any of slice `index`."""
        begins, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if index is not None and not begins[0] <= index < begins[0] + sizes[0]:
            return
        piece = self._load(key, chunk)
        if index is not None:
            piece, begins, sizes = piece[index - begins[0]], begins[1:], sizes[1:]
        place = tuple(slice(b, b + n) for b, n in zip(begins, sizes, strict=True))
        whole[place] = piece.view(sizes)

    def _load(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        entry: Any = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        with (self.directory / entry.relative_path).open("rb") as file:
            file.seek(entry.offset)
            data = io.BytesIO(file.read(entry.length))
        loaded = torch.load(data, map_location="cpu", weights_only=True)
        assert isinstance(loaded, Tensor)
        return loaded


def _places(parameter: str) -> list[tuple[str, int | None]]:
    """Where a parameter may be: under its name, or as a slice of experts or of layers."""
    places: list[tuple[str, int | None]] = [(parameter, None)]
    for pattern, stacked in (
        (r"\.experts\.local_experts\.(\d+)\.", ".experts.experts."),
        (r"^decoder\.layers\.(\d+)\.", "decoder.layers."),
    ):
        found = re.search(pattern, parameter)
        if found:
            key = parameter[: found.start()] + stacked + parameter[found.end() :]
            places.append((key, int(found[1])))
    return places
