"""What an evaluation pins: every setting that may move a score, flat, and one hash over all of it.

    pins = pinned({"rollout": {...}, "suites": {...}})        # {"rollout.sampling.temperature": 1.0, ...}
    digest(pins)                                              # 16 hex digits
    differences(pins, others)                                 # the keys that differ, with both values

Whole groups of the configuration are pinned, apart from what is listed here as only changing how fast
attempts are made: a knob that is added to a group later is pinned until somebody says that it need not be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from rlframe.types import Task

ONLY_SPEED = (
    "rollout.engines",
    "rollout.eval_engines",
    "rollout.router",
    "rollout.router_args",
    "rollout.call_logs",
    "rollout.workers",
    "rollout.max_concurrency",
    "rollout.domain_concurrency",
    "rollout.over_admission",
    "rollout.max_lost_share",
    "rollout.infra_retries",
    "rollout.partial",
    "rollout.start_timeout_s",
    "rollout.num_threads",
    "rollout.max_restarts",
    "rollout.hung_after_s",
    "rollout.request_timeout_s",
    "rollout.black_box.programs_directory",
    "guard.judge.key_env",
    *(
        f"rollout.engine_args.{name}"
        for name in (
            "mem_fraction_static",
            "max_total_tokens",
            "max_running_requests",
            "tp_size",
            "dp_size",
            "pp_size",
            "chunked_prefill_size",
            "disable_cuda_graph",
            "log_level",
        )
    ),
)
"""Not pinned: a score is the same with other values. Everything below such a key isn't either."""
ABSENT = "(absent)"

Pins = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose values differ; `ABSENT` where one side has none."""

    key: str
    one: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.one)} and {_shown(self.other)}"


def pinned(groups: Mapping[str, Any]) -> dict[str, Any]:
    """`groups`: configuration sections (dataclasses or mappings) and plain values, by name; sorted."""
    flat = dict(_flat("", groups))
    return {
        key: value
        for key, value in sorted(flat.items())
        if not any(key == free or key.startswith(f"{free}.") for free in ONLY_SPEED)
    }


def digest(pins: Pins) -> str:
    """The same for the same settings, in whatever order, on every machine."""
    return hashlib.sha256(_canonical(pins).encode()).hexdigest()[:16]


def differences(one: Pins, other: Pins) -> list[Difference]:
    """By key; none if and only if the digests are the same."""
    return [
        Difference(key, one.get(key, ABSENT), other.get(key, ABSENT))
        for key in sorted(one.keys() | other.keys())
        if _canonical(one.get(key, ABSENT)) != _canonical(other.get(key, ABSENT))
    ]


def without(found: Sequence[Difference], allowed: Iterable[str]) -> list[Difference]:
    """Those that are not below one of the keys that may differ."""
    free = tuple(allowed)
    return [d for d in found if not any(d.key == k or d.key.startswith(f"{k}.") for k in free)]


def tasks_digest(tasks: Sequence[Task]) -> str:
    """Of what the tasks say, their rules (network, resources, protected paths) included; not of where they
    come from: a data file may change under its name."""
    described = [
        {item.name: getattr(task, item.name) for item in fields(task)}
        for task in sorted(tasks, key=lambda task: task.id)
    ]
    return hashlib.sha256(_canonical(described).encode()).hexdigest()[:16]


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), below)
    elif not isinstance(value, Mapping):
        yield prefix, json.loads(_canonical(value))


def _canonical(value: Any) -> str:
    """JSON in one form: 1 and 1.0 are one number, tuples are lists, sets are sorted, dataclasses are their
    fields, and what JSON lacks is its text."""
    return json.dumps(
        _plainer(value), sort_keys=True, separators=(",", ":"), default=_text, ensure_ascii=True
    )


def _plainer(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plainer(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plainer(below) for below in value]
    if isinstance(value, set | frozenset):
        return sorted((_plainer(below) for below in value), key=repr)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _text(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _shown(value: Any) -> str:
    return value if value == ABSENT else json.dumps(value, default=repr)
