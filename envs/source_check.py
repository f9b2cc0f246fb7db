"""A source of tasks, tried out before a run starts: what a user's class gets wrong is said then."""

from __future__ import annotations

from typing import Any

from envs.sandbox.spec import Ports
from envs.tools.tool_env import SandboxToolEnv
from rlframe.errors import UserError, describe
from rlframe.interfaces import TaskSource
from rlframe.types import Task

METHODS = {
    "Env": ("start", "step", "close"),
    "ToolEnv": ("start", "act", "close"),
    "WorkspaceEnv": ("prepare", "score", "close"),
}


def check_source(source: TaskSource, *, name: str, mode: str = "white_box") -> None:
    """Makes a task, the held-out ones and an environment; raises UserError where one is not as
    `rlframe.interfaces` has it. Reads a data file to its end. `mode` is `rollout.mode`; empty: no attempt
    will be made (SFT)."""
    try:
        first, again = source.train_task(0), source.train_task(0)
        held_out = source.held_out_tasks()
        for task in (first, *held_out):
            _check_task(task, name)
        env = source.make(first)
    except UserError:
        raise
    except Exception as error:  # a user's code
        raise UserError(f"env.name={name}: {describe(error)}") from error
    if (first.id, first.messages, first.data) != (again.id, again.messages, again.data):
        raise UserError(
            f"env.name={name}: train_task(0) made two different tasks; the same index must make the "
            "same task for ever (draw from a generator seeded with the index)"
        )
    _check_held_out([task.id for task in held_out], name)
    if mode:
        _check_env(env, name, mode)
    if isinstance(env, SandboxToolEnv):
        for task in (first, *held_out):
            _check_network(task, name)


def _check_env(env: Any, name: str, mode: str) -> None:
    """Has what `rollout.mode` calls."""
    kind = "WorkspaceEnv" if mode == "black_box" else "ToolEnv" if hasattr(env, "act") else "Env"
    missing = [m for m in METHODS[kind] if not callable(getattr(env, m, None))]
    if missing:
        raise UserError(
            f"env.name={name}: {type(env).__name__} lacks {', '.join(f'{m}()' for m in missing)}; "
            f"rollout.mode={mode} calls them (see rlframe.interfaces.{kind})"
        )
    if kind == "ToolEnv" and not hasattr(env, "tools"):
        raise UserError(
            f"env.name={name}: {type(env).__name__} has act(), but no `tools` to show to the policy "
            "(see rlframe.interfaces.ToolEnv)"
        )


def _check_network(task: Task, name: str) -> None:
    """No sandbox of ours filters by host; said here, and not by the first attempt."""
    try:
        Ports("task's").check(task.rules.network)
    except UserError as error:
        raise UserError(f"env.name={name}: task '{task.id}': {error}") from None


def _check_task(task: Any, name: str) -> None:
    if not isinstance(task, Task):
        raise UserError(f"env.name={name}: made {task!r}, which is no rlframe.types.Task")
    for message in task.messages:
        if "role" not in message or "content" not in message:
            raise UserError(
                f"env.name={name}: task '{task.id}' has a message without role or content: {message!r}"
            )


def _check_held_out(ids: list[str], name: str) -> None:
    if not ids:
        raise UserError(f"env.name={name}: held_out_tasks() made no tasks")
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"env.name={name}: held_out_tasks() made the id '{twice}' twice")
