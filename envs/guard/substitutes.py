"""Harmless arguments in place of a blocked call's, for a program that runs its tools itself: what they give is
what the dummy says, in the program's own form."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from envs.guard.actions import (
    PATHS,
    Change,
    Code,
    Look,
    Run,
    Search,
    actions,
    command_key,
    strings,
)
from rlframe.interfaces import Blocked

NOWHERE = "/proc/0"
"""A directory that never exists: what is looked for below it is not there, and can't be made."""


def blocked(name: str, arguments: Mapping[str, Any], result: str) -> Blocked:
    """`result`: the dummy."""
    action = actions(name, arguments)[0]
    if isinstance(action, Run) and (key := command_key(arguments)) is not None:
        command = _says(result)
        given = arguments[key]
        shown: Any = ["bash", "-c", command] if isinstance(given, list) else command
        return Blocked(result, {**arguments, key: shown})
    if isinstance(action, Code):
        keys = [k for k, v in arguments.items() if v == action.text]
        code = f"import sys\nsys.exit({result!r})" if result else "pass"
        return Blocked(result, {**arguments, **dict.fromkeys(keys, code)})
    if isinstance(action, Look | Change | Search):
        return _elsewhere(arguments, result)
    return Blocked(result, _emptied(arguments), whole=True)


def _says(result: str) -> str:
    """A command that prints the dummy as an error, or finds nothing."""
    return f"printf '%s\\n' {shlex.quote(result)} >&2; false" if result else "true"


def _elsewhere(arguments: Mapping[str, Any], result: str) -> Blocked:
    """The same, of a path that is not there; the program's answer names the path that was asked for."""
    moved = {
        key: f"{NOWHERE}/{str(arguments[key]).lstrip('/')}"
        for key in (*PATHS, "directory", "dir_path")
        if isinstance(arguments.get(key), str)
    }
    if not moved:
        return Blocked(result, _emptied(arguments), whole=True)
    rewrites = {new: str(arguments[key]) for key, new in moved.items()}
    return Blocked(result, {**arguments, **moved}, {**rewrites, NOWHERE: ""})


def _emptied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "" if strings(value) else value for key, value in arguments.items()}
