"""`env.name=gymnasium`: environments with `reset` and `step` that speak text, from Gymnasium or alike.

    rlframe train env.name=gymnasium env.args.make=my_module:make_env

`make_env()` returns an object with Gymnasium's API: `reset(seed=...) -> (observation, info)`,
`step(action) -> (observation, reward, terminated, truncated, info)`. Methods may be async. Observations are
shown with `str`; an action is the policy's text, through `env.args.action` where it must be more.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import options
from envs.loading import load_object
from envs.tools.tool_env import finite_reward
from rlframe.errors import TaskFault, UserError, describe, nearest
from rlframe.interfaces import Score, StepResult
from rlframe.types import Demonstration, Message, Task


@dataclass(frozen=True)
class GymnasiumOptions:
    """`env.args` of `env.name=gymnasium`."""

    make: str = ""
    """`module:function` that makes an environment, or..."""
    id: str = ""
    """...the id of a registered one."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of either."""
    action: str = ""
    """`module:function` from the policy's text to an action; empty: the text itself."""
    system: str = ""
    domain: str = "gymnasium"

    def __post_init__(self) -> None:
        if bool(self.make) == bool(self.id):
            raise UserError("env.args: give either make=module:function or id=ENVIRONMENT")


class GymnasiumSource:
    """Satisfies `rlframe.interfaces.TaskSource`: a task is a seed. Held-out seeds have a range of their own."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(GymnasiumOptions, given)
        self._seed, self._held_out = seed, held_out
        self._make = _maker(self._options)
        action = self._options.action
        self._action = load_object(action, key="env.args.action") if action else str

    def train_task(self, index: int) -> Task:
        return self._task(f"train/{index}", (self._seed << 32) + (1 << 20) + index)

    def held_out_tasks(self) -> Sequence[Task]:
        return [self._task(f"held_out/{n}", (self._seed << 32) + n) for n in range(self._held_out)]

    def make(self, task: Task) -> GymnasiumEnv:
        return GymnasiumEnv(task, self._make, self._action, self._options.system)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=gymnasium: has no demonstrations for supervised fine-tuning")

    def _task(self, name: str, seed: int) -> Task:
        # What is asked is known after reset only: the opening messages are the environment's.
        return Task(name, self._options.domain, (), {"seed": seed}, seed=seed)


def _maker(chosen: GymnasiumOptions) -> Callable[[], Any]:
    if chosen.make:
        function = load_object(chosen.make, key="env.args.make")
        options.require(callable(function), "env.args.make", chosen.make, "a function")
        return lambda: function(**chosen.args)
    try:
        gymnasium = importlib.import_module("gymnasium")
    except ImportError:
        raise UserError(
            f"env.args.id={chosen.id}: gymnasium is not installed: `pip install gymnasium`"
        ) from None
    if chosen.id not in gymnasium.registry:
        raise UserError(
            f"env.args.id={chosen.id}: gymnasium has no such environment registered."
            f"{nearest(chosen.id, gymnasium.registry)}"
        )
    return lambda: gymnasium.make(chosen.id, **chosen.args)


@dataclass(slots=True)
class GymnasiumEnv:
    """One episode. Synchronous methods run in a thread: they may take their time."""

    task: Task
    factory: Callable[[], Any]
    action: Callable[[str], Any]
    system: str
    _env: Any = None

    async def start(self) -> Sequence[Message]:
        self._env = await asyncio.to_thread(self.factory)
        first = await _call(self._env.reset, seed=self.task.seed % (1 << 31))
        observation = first[0] if isinstance(first, tuple) else first
        opening: Message = {"role": "user", "content": str(observation)}
        system: Message = {"role": "system", "content": self.system}
        return [system, opening] if self.system else [opening]

    async def step(self, text: str) -> StepResult:
        try:
            action = self.action(text)
        except Exception as error:  # noqa: BLE001 - a text that is no action: the policy's own fault
            said: Message = {"role": "user", "content": f"That is no action: {error}"}
            return StepResult(done=False, messages=(said,), info={"bad_action": describe(error)})
        result = await _call(self._env.step, action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise TaskFault(f"step() returned {result!r:.80}: must be five values")
        observation, reward, terminated, truncated, info = result
        number = reward.item() if hasattr(reward, "item") else reward
        value = finite_reward(Score(number))
        done = bool(terminated or truncated)
        messages: tuple[Message, ...] = ({"role": "user", "content": str(observation)},)
        notes = {"truncated": bool(truncated), **(info if isinstance(info, Mapping) else {})}
        return StepResult(done, value, () if done else messages, notes)

    async def close(self) -> None:
        close = getattr(self._env, "close", None)
        if close is not None:
            await _call(close)


async def _call(method: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if inspect.iscoroutinefunction(method):
        return await method(*given, **named)
    result = await asyncio.to_thread(method, *given, **named)
    return await result if inspect.isawaitable(result) else result
