"""Reading fields of a Hugging Face config, with messages that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlframe.errors import UserError


def positive_integer(hf_config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Raises UserError if the field is missing (without a default) or not an integer of 1 or more."""
    return _integer(hf_config, key, default, least=1)


def count(hf_config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """As `positive_integer`, but 0 is allowed."""
    return _integer(hf_config, key, default, least=0)


def rope_theta(hf_config: Mapping[str, Any]) -> float:
    """transformers 5 keeps it in `rope_parameters`, older checkpoints on the top level."""
    rope = hf_config.get("rope_parameters") or {}
    return float(rope.get("rope_theta", hf_config.get("rope_theta", 10000.0)))


def rope_type(hf_config: Mapping[str, Any]) -> str:
    """`default` where nothing is said."""
    rope = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    return str(rope.get("rope_type", rope.get("type", "default")))


def _integer(hf_config: Mapping[str, Any], key: str, default: int | None, *, least: int) -> int:
    value = hf_config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"model config: {key} must be an integer of {least} or more, not {value!r}."
        )
    return value
