"""What a task forbids and grants: one object, read by its sandbox, its verifier and the guard alike.

rules = TaskRules(
    protected_paths=("/workspace/.eval/**",), forbidden_sources=("github.com/pydata/xarray", "xarray")
)
rules = task_rules({"protected_paths": ["/tests/**"], "network": "none"})   # from JSON
rules.to_json()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

from rlframe.errors import UserError

EVERY_HOST = "*"


@dataclass(frozen=True, slots=True)
class Resources:
    """What an attempt's sandbox may use; 0: the sandbox's own default."""

    cpus: float = 0.0
    memory_mb: int = 0
    processes: int = 0
    disk_mb: int = 0
    """What it may write, all files together."""
    seconds: float = 0.0
    """Wall time of the attempt."""


@dataclass(frozen=True, slots=True)
class TaskRules:
    """Hashable, and JSON by `to_json`. Paths are absolute, as the agent sees them, or relative to its
    working directory; `**` at the end means everything below, other wildcards are those of a shell."""

    protected_paths: tuple[str, ...] = ()
    """Neither read nor changed by the agent: hidden tests, labels, solutions, graders. A sandbox does
    not show them if it can."""
    read_only_paths: tuple[str, ...] = ()
    """May be read and run, not changed: visible tests, their configuration, benchmarks."""
    forbidden_sources: tuple[str, ...] = ()
    """Where the solution could be taken from: `github.com/owner/name`, a host, a URL's beginning, or a
    package's name (`humanize`: its source, from any place). `git:future`: commits that are not in HEAD's
    history; `git:history`: every commit but HEAD."""
    network: tuple[str, ...] = ()
    """Hosts that may be reached (`pypi.org`, `*.pythonhosted.org`); empty: none; `*`: every host."""
    resources: Resources = Resources()

    @property
    def guarded(self) -> bool:
        """Whether there is anything that an agent could break."""
        return bool(self.protected_paths or self.read_only_paths or self.forbidden_sources)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def task_rules(given: Mapping[str, Any]) -> TaskRules:
    """From JSON. `network` may be `none` or `public` too. Raises UserError naming the key."""
    _known(given, TaskRules, "rules")
    network = given.get("network", ())
    if isinstance(network, str):
        words = {"none": (), "public": (EVERY_HOST,)}
        if network not in words:
            raise UserError(f"rules.network: none, public or a list of hosts, not {network!r}")
        network = words[network]
    resources = given.get("resources") or {}
    if not isinstance(resources, Mapping):
        raise UserError(f"rules.resources: a mapping, not {resources!r:.60}")
    _known(resources, Resources, "rules.resources")
    return TaskRules(
        protected_paths=_texts(given, "protected_paths"),
        read_only_paths=_texts(given, "read_only_paths"),
        forbidden_sources=_texts(given, "forbidden_sources"),
        network=_texts({"network": network}, "network"),
        resources=Resources(**{name: _amount(resources, name) for name in resources}),
    )


def _known(given: Mapping[str, Any], kind: type, where: str) -> None:
    names = [field.name for field in fields(kind)]
    for key in given:
        if key not in names:
            near = get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{where}.{key}: no such key{hint}; there are {', '.join(names)}")


def _texts(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, ())
    if isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    raise UserError(f"rules.{key}: a list of strings, not {value!r:.60}")


def _amount(given: Mapping[str, Any], key: str) -> Any:
    value = given[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UserError(f"rules.resources.{key}: a number of at least 0, not {value!r:.60}")
    return value if key in ("cpus", "seconds") else int(value)
