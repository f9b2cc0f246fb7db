"""Several environments side by side, each whole: what `rlframe eval` runs.

    env.name=union
    env.args.parts={puzzles: {name: reasoning_gym, args: {...}, held_out: 64}, mine: {name: my_module:MyTasks}}

Unlike `mixed` there are no weights: every part gives all of its held-out tasks. Ids and domains are those of
the parts behind the part's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envs import options
from rlframe.errors import UserError
from rlframe.interfaces import AnyEnv, TaskSource
from rlframe.types import Demonstration, Task


@dataclass(frozen=True)
class UnionOptions:
    """`env.args` of `env.name=union`."""

    parts: Mapping[str, Any]

    def __post_init__(self) -> None:
        options.require(
            len(self.parts) > 0, "env.args.parts", dict(self.parts), "at least one part"
        )


@dataclass(frozen=True)
class PartOptions:
    """One entry of `parts`. `held_out` and `seed` are the union's own where they are not given."""

    name: str
    """As `env.name`."""
    args: Mapping[str, Any] = field(default_factory=dict)
    held_out: int = 0
    seed: int = -1


class UnionSource:
    """See the module's docstring; satisfies `rlframe.interfaces.TaskSource`."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        from envs.registry import make_source

        self._sources: dict[str, TaskSource] = {}
        for name, spec in options.parse(UnionOptions, given).parts.items():
            key = f"env.args.parts.{name}"
            part = options.parse(PartOptions, spec, where=key)
            options.require("/" not in name, key, name, "a name without a slash")
            options.require(part.name != "union", f"{key}.name", part.name, "no union itself")
            try:
                self._sources[name] = make_source(
                    part.name,
                    part.args,
                    seed=part.seed if part.seed >= 0 else seed,
                    held_out=part.held_out or held_out,
                )
            except UserError as error:
                raise UserError(f"{key}: {error}") from error

    def train_task(self, index: int) -> Task:
        """The parts in turn."""
        names = list(self._sources)
        turn, part = divmod(index, len(names))
        return _named(names[part], self._sources[names[part]].train_task(turn))

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

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        """As even as it goes. UserError where one of the parts has none."""
        each, more = divmod(count, len(self._sources))
        return [
            replace(shown, domain=f"{name}/{shown.domain}")
            for index, (name, source) in enumerate(self._sources.items())
            for shown in source.demonstrations(each + (index < more))
        ]


def _named(part: str, task: Task) -> Task:
    return replace(task, id=f"{part}/{task.id}", domain=f"{part}/{task.domain}")
