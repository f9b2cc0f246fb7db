"""The files of a checkpoint, filled by tensors that come one by one, whole, in any order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from trainer.convert.plan import Shard, weight_index
from trainer.models.hf_files import INDEX
from trainer.models.safetensors_files import SafetensorsFile


class ShardedWriter:
    """A file is opened with its first tensor and complete with its last."""

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self._directory, self._shards = directory, shards
        self._shard_of = {name: shard for shard in shards for name in shard.layout}
        self._open: dict[str, tuple[SafetensorsFile, set[str]]] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        """Raises ValueError for a tensor that is not planned, or not as it is planned."""
        shard = self._shard_of.pop(name, None)
        if shard is None or tuple(tensor.shape) != shard.layout[name][1]:
            raise ValueError(f"'{name}' {list(tensor.shape)} is not what is to be written")
        if shard.file not in self._open:
            file = SafetensorsFile(self._directory / shard.file, shard.layout)
            self._open[shard.file] = (file, set(shard.layout))
        file, missing = self._open[shard.file]
        file.write(name, tensor)
        missing.discard(name)
        if not missing:
            file.finish()
            del self._open[shard.file]

    def finish(self) -> None:
        """Writes the index, where there are several files. Raises ValueError if a tensor has not come."""
        if self._shard_of:
            raise ValueError(f"never written: {sorted(self._shard_of)}")
        if len(self._shards) > 1:
            index = json.dumps(weight_index(self._shards), indent=2) + "\n"
            (self._directory / INDEX).write_text(index)
