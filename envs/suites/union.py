"""Several environments side by side, each whole: what `rlframe eval` runs.

    env.name=union
    env.args.parts={puzzles: {name: reasoning_gym, args: {...}, held_out: 64}, mine: {name: my_module:MyTasks}}

Unlike `mixed` there are no weights: every part gives all of its held-out tasks. Ids and domains are those of
the parts behind the part's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.suites.parts import Parts, parse_parts
from rlframe.interfaces import AnyEnv
from rlframe.types import Demonstration, Task


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
        parts = parse_parts(given, PartOptions, itself="union")
        self._names, self._parts = list(parts), Parts()
        for name, part in parts.items():
            own_seed = part.seed if part.seed >= 0 else seed
            self._parts.add(name, part, seed=own_seed, held_out=part.held_out or held_out)

    def train_task(self, index: int) -> Task:
        """The parts in turn."""
        turn, part = divmod(index, len(self._names))
        return self._parts.train_task(self._names[part], turn)

    def held_out_tasks(self) -> Sequence[Task]:
        return self._parts.held_out_tasks()

    def make(self, task: Task) -> AnyEnv:
        return self._parts.make(task)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        """As even as it goes. UserError where one of the parts has none."""
        each, more = divmod(count, len(self._names))
        return self._parts.demonstrations(
            [each + (index < more) for index in range(len(self._names))]
        )
