"""Several environments in one run, mixed by weight.

    env.name=mixed
    env.args.parts={puzzles: {name: reasoning_gym, weight: 3, args: {...}}, mine: {name: my_module:MyTasks}}

Domains and task ids are those of the parts behind the part's name, so that each has its own reward curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import options
from envs.mixture import Mixture, stable_hash
from envs.suites.parts import Parts, parse_parts
from rlframe.interfaces import AnyEnv
from rlframe.types import Demonstration, Task


@dataclass(frozen=True)
class PartOptions:
    """One entry of `parts`."""

    name: str
    """As `env.name`."""
    args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


class MixedSource:
    """See the module's docstring; satisfies `rlframe.interfaces.TaskSource`."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        parts = parse_parts(given, PartOptions, itself="mixed")
        for name, part in parts.items():
            options.require(
                part.weight > 0, f"env.args.parts.{name}.weight", part.weight, "above 0"
            )
        self._mixture = Mixture([part.weight for part in parts.values()])
        self._names, self._parts = list(parts), Parts()
        quotas = self._mixture.quotas(held_out)
        for (name, part), quota in zip(parts.items(), quotas, strict=True):
            own_seed = stable_hash(seed, name) % 2**31
            self._parts.add(name, part, seed=own_seed, held_out=quota)

    def train_task(self, index: int) -> Task:
        return self._parts.train_task(self._names[self._mixture.part(index)], index)

    def held_out_tasks(self) -> Sequence[Task]:
        return self._parts.held_out_tasks()

    def make(self, task: Task) -> AnyEnv:
        return self._parts.make(task)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        """By weight. UserError where one of the parts has none."""
        return self._parts.demonstrations(self._mixture.quotas(count))
