"""`role.json` of a role's checkpoint: what it is, read before anything is loaded. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlframe.errors import UserError
from rlframe.model_shapes.value_head import VALUE_BINS, same_outputs

ROLE_FILE = "role.json"


@dataclass(frozen=True, slots=True)
class RoleFile:
    """What `role.json` says."""

    role: str
    step: int
    layout: Mapping[str, int]
    model: Mapping[str, Any]
    """The Hugging Face config of the model."""
    format: int = 1
    backend: str = "megatron"
    """Whose state it is; files from before there were two have none."""


def write_role_file(directory: Path, about: RoleFile) -> None:
    (directory / ROLE_FILE).write_text(json.dumps(asdict(about), indent=2, default=str))


def read_role_file(directory: str, expected: RoleFile) -> RoleFile:
    """Raises UserError if `directory` holds no complete checkpoint of one role, or one of another role, of
    another backend or with another value head than `expected`."""
    path = Path(directory) / ROLE_FILE
    try:
        about = RoleFile(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UserError(
            f"'{directory}' is no checkpoint of ours: it has no {ROLE_FILE}."
        ) from error
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"'{path}' is broken: {error}. Use an older checkpoint.") from error
    if about.role != expected.role:
        raise UserError(
            f"'{directory}' is a checkpoint of the {about.role}, not of the {expected.role}: "
            f"point to its neighbour '{expected.role}'."
        )
    if about.backend != expected.backend:
        raise UserError(
            f"'{directory}' was saved by trainer={about.backend}, and this run has "
            f"trainer={expected.backend}: go on with trainer={about.backend}, or start a new run from the "
            "exported model (model.path=RUN/hf)."
        )
    # Megatron would take a part of a larger head without a word.
    heads = about.model.get(VALUE_BINS), expected.model.get(VALUE_BINS)
    if about.role == "critic" and not same_outputs(*heads):
        raise unreadable(directory, about, expected, "its value head is another one")
    return about


def unreadable(directory: str, about: RoleFile, expected: RoleFile, reason: str) -> UserError:
    """The error for a checkpoint whose state does not load: the model is another one, or files are broken."""
    differing = [
        f"{key} {about.model.get(key)!r}, not {expected.model.get(key)!r}"
        for key in sorted(about.model.keys() | expected.model.keys())
        if about.model.get(key) != expected.model.get(key)
    ]
    if differing:
        return UserError(
            f"the checkpoint '{directory}' does not fit the configured model: "
            f"it has {'; '.join(differing)}."
        )
    return UserError(
        f"the checkpoint '{directory}' can't be read: {reason}. Use an older checkpoint, or "
        "start anew with resume=never."
    )
