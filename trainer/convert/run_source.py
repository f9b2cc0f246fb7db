"""A role's saved training state as a source of Hugging Face tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rlframe.errors import UserError
from rlframe.model_shapes.family import read_shape
from rlframe.model_shapes.glm import GlmShape
from trainer.convert.plan import Stored
from trainer.convert.saved_state import SavedState
from trainer.models.hf_description import hf_description
from trainer.models.hf_names import Entry, join
from trainer.models.model_names import model_entries
from trainer.models.safetensors_files import NAMES

ROLE_FILE = "role.json"


class SavedRole:
    """`checkpoints/step-000010/policy` of a run. Only the tensor that is asked for is in memory."""

    def __init__(self, directory: Path, *, companions: Sequence[Path] = ()) -> None:
        """`companions`: files that go with the weights (the tokenizer's)."""
        self.directory = directory
        about = read_role(directory)
        self._state = SavedState(directory)
        self._companions = list(companions)
        shape = read_shape(about["model"])
        if isinstance(shape, GlmShape) and shape.mtp_layers:
            trained = self._state.has("mtp_layer.enorm.weight")
            shape = shape if trained else replace(shape, mtp_layers=0)
        self._entry_of: dict[str, tuple[Entry, int]] = {}
        for entry in model_entries(shape, role=about["role"]):
            for place, name in enumerate(entry.tensors):
                self._entry_of[name] = (entry, place)
        first = next(iter(self._entry_of.values()))[0]
        dtype = self._state.dtype(first.parameter)
        self.hf_config: Mapping[str, Any] = hf_description(
            about["model"], role=about["role"], dtype=dtype, shape=shape
        )
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    @property
    def tensors(self) -> Mapping[str, Stored]:
        return {
            name: Stored(NAMES[self._state.dtype(entry.parameter)], entry.shapes[place])
            for name, (entry, place) in self._entry_of.items()
        }

    def read(self, name: str, rows: slice) -> Tensor:
        entry, _ = self._entry_of[name]
        if self._last[0] != entry.parameter:
            self._last = ("", {})
            self._last = (entry.parameter, join(entry, [self._state.read(entry.parameter)]))
        tensor = self._last[1][name]
        return tensor[rows].contiguous() if tensor.dim() else tensor

    def read_stored(self, name: str, rows: slice) -> dict[str, Tensor]:
        return {name: self.read(name, rows)}

    def fingerprint(self) -> str:
        stats = [(p.name, p.stat().st_size) for p in sorted(self.directory.iterdir())]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    def companions(self) -> list[Path]:
        return self._companions


def read_role(directory: Path) -> dict[str, Any]:
    """`role.json`. Raises UserError."""
    try:
        about = json.loads((directory / ROLE_FILE).read_text())
        told = {"role": about["role"], "model": about["model"], "step": about["step"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{directory}' is no checkpoint of ours: {ROLE_FILE}: {error}") from None
    if about.get("backend", "megatron") != "megatron":
        raise UserError(
            f"'{directory}' was saved by trainer={about['backend']}, whose state can't be converted: convert the "
            "run's exported model (RUN/hf), which it writes when it ends"
        )
    return told
