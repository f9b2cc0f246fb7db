"""Where tensors come from: a Hugging Face checkpoint, or the state of a role that a run saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rlframe.errors import UserError
from rlframe.model_shapes.family import ModelShape, read_shape
from trainer.convert.plan import Stored
from trainer.models.hf_files import INDEX, HfCheckpoint

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".partial")


class Source(Protocol):
    """Tensors by their Hugging Face names. Nothing is read before it is asked for."""

    directory: Path
    hf_config: Mapping[str, Any]

    @property
    def tensors(self) -> Mapping[str, Stored]: ...

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor (those of an FP8 weight begin at a multiple of 128), as a float dtype."""

    def read_stored(self, name: str, rows: slice) -> dict[str, Tensor]:
        """The same as it lies there: by name, an FP8 weight with its scales."""

    def fingerprint(self) -> str:
        """Another one after the source has changed."""

    def companions(self) -> list[Path]:
        """Files that belong to the model and are no weights: its tokenizer, its licence."""


class HfSource:
    """A directory with `config.json` and safetensors."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hf_config: Mapping[str, Any] = read_config(directory)
        self.checkpoint = HfCheckpoint(directory)

    @property
    def shape(self) -> ModelShape:
        """Raises UserError for a family that is not known here."""
        return read_shape(self.hf_config)

    @property
    def tensors(self) -> Mapping[str, Stored]:
        found = self.checkpoint
        return {
            name: Stored(found.stored(name).dtype, shape) for name, shape in found.shapes.items()
        }

    def read(self, name: str, rows: slice) -> Tensor:
        return self.checkpoint.read(name, rows)

    def read_stored(self, name: str, rows: slice) -> dict[str, Tensor]:
        return self.checkpoint.read_stored(name, rows)

    def fingerprint(self) -> str:
        files = sorted(p for p in self.directory.iterdir() if p.is_file())
        stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    def companions(self) -> list[Path]:
        others = ("config.json", INDEX)
        return sorted(
            p
            for p in self.directory.iterdir()
            if p.is_file() and p.name not in others and p.suffix not in WEIGHTS
        )


def read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"'{directory}' has no config.json: it is no Hugging Face checkpoint"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is broken: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is broken: it holds no dictionary")
    return config
