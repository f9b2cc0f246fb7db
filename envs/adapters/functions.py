"""`env.name=functions`: plain Python functions of your own are the whole environment.

rlframe train env.name=functions env.args.tasks=my_module:tasks env.args.reward=my_module:reward

def tasks():                                  # any iterable of mappings with a `prompt`; read once
    yield {"prompt": "What is 6 * 7?", "answer": "42"}

async def reward(answer: str, task: dict) -> float | dict:     # or without async; a dict has a `reward`
    return float(answer.strip() == task["answer"])
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from envs import options
from envs.epochs import Epochs
from envs.loading import load_object
from envs.tools.tool_env import finite_reward
from rlframe.errors import TaskFault, UserError, describe
from rlframe.interfaces import Score, StepResult
from rlframe.types import Demonstration, Message, Task


@dataclass(frozen=True)
class FunctionsOptions:
    """`env.args` of `env.name=functions`."""

    tasks: str
    reward: str
    system: str = ""


class FunctionsSource:
    """Satisfies `rlframe.interfaces.TaskSource`. The last `held_out` of the tasks are held out."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(FunctionsOptions, given)
        self._epochs, self._count = Epochs(seed), held_out
        self._reward = load_object(self._options.reward, key="env.args.reward")
        options.require(
            callable(self._reward), "env.args.reward", self._options.reward, "a function"
        )

    @cached_property
    def _rows(self) -> list[Mapping[str, Any]]:
        given = load_object(self._options.tasks, key="env.args.tasks")
        try:
            rows = list(given() if callable(given) else given)
        except Exception as error:
            raise UserError(f"env.args.tasks={self._options.tasks}: {describe(error)}") from error
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str | list):
                raise UserError(
                    f"env.args.tasks={self._options.tasks}: task {number} is {row!r:.80}: must be a "
                    "mapping with a `prompt`, a text or messages"
                )
        if len(rows) <= self._count:
            raise UserError(
                f"env.args.tasks={self._options.tasks}: makes {len(rows)} tasks, and env.held_out="
                f"{self._count} of them are held out"
            )
        return rows

    def train_task(self, index: int) -> Task:
        _, row = self._epochs.row(index, count=len(self._rows) - self._count)
        return self._task(row, "train")

    def held_out_tasks(self) -> Sequence[Task]:
        return [
            self._task(len(self._rows) - self._count + i, "held_out") for i in range(self._count)
        ]

    def make(self, task: Task) -> FunctionEnv:
        return FunctionEnv(task, self._reward)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=functions: has no demonstrations for supervised fine-tuning")

    def _task(self, number: int, part: str) -> Task:
        row, prompt = self._rows[number], self._rows[number]["prompt"]
        said: list[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        )
        if self._options.system:
            said.insert(0, {"role": "system", "content": self._options.system})
        domain = str(row.get("domain", "functions"))
        return Task(f"{part}/{row.get('id', number)}", domain, tuple(said), {"row": dict(row)})


@dataclass(slots=True)
class FunctionEnv:
    """One question, one answer."""

    task: Task
    reward: Any

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, text: str) -> StepResult:
        given = self.reward(text, self.task.data["row"])
        said = await given if inspect.isawaitable(given) else given
        if isinstance(said, Mapping):
            if "reward" not in said:
                raise TaskFault(f"the reward function returned {said!r:.80}, without `reward`")
            info = {key: value for key, value in said.items() if key != "reward"}
            return StepResult(done=True, reward=finite_reward(Score(said["reward"])), info=info)
        return StepResult(done=True, reward=finite_reward(Score(said)))

    async def close(self) -> None:
        pass
