"""What a teacher's checkpoint is, from its JSON and the headers of its files: nothing is read whole."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe import weights
from rlframe.config.check_model import check_weights, read_shape
from rlframe.errors import UserError
from rlframe.teachers.manifest import Teacher

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
NOT_ARCHITECTURE = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
    }
)
"""Fields of config.json that change nothing about what is computed from the weights."""


@dataclass(frozen=True, slots=True)
class TeacherCheckpoint:
    """One teacher's files."""

    directory: str
    num_bytes: int
    dtype: str
    """What an engine serves it in: that of most of its bytes, bfloat16 where that is a quantised one."""
    architecture: str
    """Equal for two teachers if and only if the weights of one fit into an engine that serves the other."""
    vocab_size: int
    positions: int
    """Tokens of the longest trace that it reads; 0 where config.json does not say."""


def read_checkpoint(teacher: Teacher, *, where: str) -> TeacherCheckpoint:
    """UserError where the directory is not a whole checkpoint."""
    directory = Path(teacher.checkpoint).expanduser()
    key = f"{where}: checkpoint"
    config = read_shape(directory, key)
    check_weights(directory, key)
    try:
        stored = weights.open_directory(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: '{directory}' can't be read: {error}") from None
    bytes_of: Counter[str] = Counter()
    for tensor in stored.values():
        bytes_of[tensor.dtype] += len(tensor.data)
    signature = sorted((name, t.dtype, t.shape) for name, t in stored.items())
    return TeacherCheckpoint(
        directory=str(directory),
        num_bytes=bytes_of.total(),
        dtype=DTYPES.get(bytes_of.most_common(1)[0][0], "bfloat16"),
        architecture=_digest([_computes(config), signature]),
        vocab_size=_size(config, "vocab_size", key),
        positions=_size(config, "max_position_embeddings", key, default=0),
    )


def _computes(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NOT_ARCHITECTURE}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _size(config: dict[str, Any], name: str, key: str, *, default: int = -1) -> int:
    """Of the language model where there is more than one."""
    size = config.get(name, config.get("text_config", {}).get(name, default))
    if not isinstance(size, int) or size < 0:
        raise UserError(f"{key}: config.json has no {name}")
    return size
