"""Several environments behind one source: what `mixed` and `union` share.

Ids and domains of tasks are those of the parts behind the part's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from envs import options
from rlframe.errors import UserError
from rlframe.interfaces import AnyEnv, TaskSource
from rlframe.types import Demonstration, Task


@dataclass(frozen=True)
class PartsOptions:
    """`env.args` of both."""

    parts: Mapping[str, Any]

    def __post_init__(self) -> None:
        options.require(
            len(self.parts) > 0, "env.args.parts", dict(self.parts), "at least one part"
        )


class Part(Protocol):
    """One entry of `parts`: `name` and `args` are as `env.name` and `env.args`."""

    @property
    def name(self) -> str: ...

    @property
    def args(self) -> Mapping[str, Any]: ...


P = TypeVar("P", bound=Part)


def parse_parts(given: Mapping[str, Any], kind: type[P], *, itself: str) -> dict[str, P]:
    """Raises UserError naming the part; `itself` is the `env.name` that may not be one."""
    parts: dict[str, P] = {}
    for name, spec in options.parse(PartsOptions, given).parts.items():
        key = f"env.args.parts.{name}"
        parts[name] = options.parse(kind, spec, where=key)
        options.require("/" not in name, key, name, "a name without a slash")
        options.require(
            parts[name].name != itself, f"{key}.name", parts[name].name, f"no {itself} itself"
        )
    return parts


class Parts:
    """The parts' sources by name."""

    def __init__(self) -> None:
        self._sources: dict[str, TaskSource] = {}

    def add(self, name: str, part: Part, *, seed: int, held_out: int) -> None:
        from envs.registry import make_source

        try:
            self._sources[name] = make_source(part.name, part.args, seed=seed, held_out=held_out)
        except UserError as error:
            raise UserError(f"env.args.parts.{name}: {error}") from error

    def train_task(self, name: str, index: int) -> Task:
        return _named(name, self._sources[name].train_task(index))

    def held_out_tasks(self) -> Sequence[Task]:
        return [
            _named(name, task)
            for name, source in self._sources.items()
            for task in source.held_out_tasks()
        ]

    def make(self, task: Task) -> AnyEnv:
        name, _, own_id = task.id.partition("/")
        domain = task.domain.removeprefix(f"{name}/")
        return self._sources[name].make(replace(task, id=own_id, domain=domain))

    def demonstrations(self, counts: Sequence[int]) -> Sequence[Demonstration]:
        """So many of each part. UserError where one of them has none."""
        return [
            replace(shown, domain=f"{name}/{shown.domain}")
            for (name, source), count in zip(self._sources.items(), counts, strict=True)
            for shown in source.demonstrations(count)
        ]


def _named(part: str, task: Task) -> Task:
    return replace(task, id=f"{part}/{task.id}", domain=f"{part}/{task.domain}")
