"""What rlframe gives the options of other libraries where it departs from their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlframe.cluster.preflight import count_gpus
from rollout.engine.arguments import COMMON_DEFAULTS, CPU_DEFAULTS
from trainer import defaults


def our_defaults(key: str) -> Mapping[str, Any]:
    """By pass-through knob, for this machine; empty where the library's own hold."""
    match key.split("."):
        case ["rollout", "engine_args"]:
            return {**COMMON_DEFAULTS, **({} if count_gpus() else CPU_DEFAULTS)}
        case ["trainer", _, "transformer"]:
            return defaults.TRANSFORMER
        case ["trainer", _, "deepspeed", *section]:
            found = defaults.deepspeed_defaults(half=False, on_cpu=not count_gpus())
            for name in section:
                found = found.get(name, {})
            return found
        case ["trainer", _, "ddp"]:
            return defaults.ddp_defaults({})
    return {}
