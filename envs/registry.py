"""From `env.name` and `env.args` to a source of tasks: a built-in one, or a user's class.

source = make_source("reasoning_gym", {"families": {"gcd": {}}}, seed=0, held_out=64)
source = make_source("my_package.my_module:MySource", {"path": "my.jsonl"}, seed=0, held_out=64)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from envs.loading import load_object
from rlframe.errors import UserError, describe, nearest
from rlframe.interfaces import AnyEnv, TaskSource
from rlframe.types import Demonstration, Task

BUILT_IN = MappingProxyType(
    {
        "reasoning_gym": "envs.suites.reasoning_gym:ReasoningGymSource",
        "dataset": "envs.suites.dataset:DatasetSource",
        "mixed": "envs.suites.mixed:MixedSource",
        "union": "envs.suites.union:UnionSource",
        "code_repair": "envs.suites.code_repair.source:CodeRepairSource",
        "functions": "envs.adapters.functions:FunctionsSource",
        "gymnasium": "envs.adapters.gymnasium_text:GymnasiumSource",
        "mcp": "envs.adapters.mcp_env:McpSource",
        "verifiers": "envs.adapters.verifiers_env:VerifiersSource",
        "openenv": "envs.adapters.openenv:OpenEnvSource",
        "swe_bench": "envs.adapters.swe_bench:SweBenchSource",
        "harbor": "envs.adapters.harbor:HarborSource",
        "long_memory": "envs.suites.long_memory:LongMemorySource",
        "hackable": "envs.suites.hackable.source:HackableSource",
    }
)
REQUIRED_METHODS = ("train_task", "held_out_tasks", "make")


def make_source(name: str, args: Mapping[str, Any], *, seed: int, held_out: int) -> TaskSource:
    """Raises UserError for an unknown name, wrong arguments, or a class that is no TaskSource."""
    if name in BUILT_IN:
        built_in: TaskSource = load_object(BUILT_IN[name], key="env.name")(
            args, seed=seed, held_out=held_out
        )
        return built_in
    if ":" not in name:
        raise UserError(
            f"env.name={name}: there is no such environment.{nearest(name, BUILT_IN)} "
            "Your own is named `package.module:Name`."
        )
    return _own(name, args, seed=seed, held_out=held_out)


def _own(name: str, args: Mapping[str, Any], *, seed: int, held_out: int) -> TaskSource:
    factory = load_object(name, key="env.name")
    if not callable(factory):
        raise UserError(f"env.name={name}: is no class or function")
    settings = _accepted(name, factory, args, {"seed": seed, "held_out": held_out})
    try:
        source = factory(**settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"env.name={name}: could not be created: {describe(error)}") from error
    missing = [m for m in REQUIRED_METHODS if not callable(getattr(source, m, None))]
    if missing:
        raise UserError(
            f"env.name={name}: lacks {', '.join(f'{m}()' for m in missing)} "
            "(see rlframe.interfaces.TaskSource)"
        )
    if not hasattr(source, "demonstrations"):
        return WithoutDemonstrations(source, name)
    own: TaskSource = source
    return own


def _accepted(
    name: str, factory: Any, args: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, Any]:
    """`env.args` and, of `ours`, what the factory has parameters for."""
    parameters = inspect.signature(factory).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for key in args:
        if key not in named and not takes_any:
            raise UserError(f"env.args.{key}: {name} takes no such argument.{nearest(key, named)}")
    settings = {k: v for k, v in ours.items() if k in named or takes_any} | dict(args)
    for key, parameter in named.items():
        if key not in settings and parameter.default is parameter.empty:
            raise UserError(f"env.args.{key}: {name} needs it")
    return settings


class WithoutDemonstrations:
    """A user's source that has no demonstrations: fine for reinforcement learning, not for SFT."""

    def __init__(self, source: Any, name: str) -> None:
        self._source, self._name = source, name

    def train_task(self, index: int) -> Task:
        task: Task = self._source.train_task(index)
        return task

    def held_out_tasks(self) -> Sequence[Task]:
        tasks: Sequence[Task] = self._source.held_out_tasks()
        return tasks

    def make(self, task: Task) -> AnyEnv:
        env: AnyEnv = self._source.make(task)
        return env

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError(
            f"env.name={self._name}: has no demonstrations() to learn from by supervised fine-tuning"
        )
