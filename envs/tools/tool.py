"""One tool, and what it may say: a text for the policy, never an exception for what the policy did."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlframe.sandbox.protocol import Sandbox

TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}


class ToolError(Exception):
    """The policy asked for what can't be done; the text is its answer."""


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """What all tools of an environment share."""

    workdir: str = "/workspace"
    timeout_s: float = 60.0
    """Of one call."""
    max_timeout_s: float = 600.0
    """Of one call that asks for more."""
    max_chars: int = 16_000
    """Of one result: its beginning and its end."""

    def path(self, given: str) -> str:
        return given if given.startswith("/") else f"{self.workdir}/{given}"


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What one call did."""

    text: str
    exit_code: int | None = None
    limit: str = ""
    cut_chars: int = 0


Worded = Callable[[Mapping[str, Any], str], str]
"""Of a call's arguments, and what stands in the way of it."""
Run = Callable[[Sandbox, Mapping[str, Any], ToolSettings], Awaitable[ToolOutput]]


@dataclass(frozen=True, slots=True)
class Tool:
    """`run` gets arguments that fit `parameters`, a JSON schema of an object with plain properties."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Run
    worded: Worded = lambda _, said: said
    """What it answers to a call that a guard has stopped, in the words of its other failures: the policy must
    not be able to tell."""

    def shown(self) -> dict[str, Any]:
        """As `ToolEnv.tools` has it."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }


def parameters(required: Sequence[str], **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def checked_arguments(tool: Tool, given: Any) -> Mapping[str, Any]:
    """Raises ToolError, naming the argument and what it must be. A JSON text counts as what it says."""
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except ValueError as error:
            raise ToolError(f"Error: the arguments of {tool.name} are no JSON: {error}") from None
    if not isinstance(given, Mapping):
        raise ToolError(f"Error: the arguments of {tool.name} must be an object.")
    known = tool.parameters["properties"]
    for key, value in given.items():
        if key not in known:
            raise ToolError(
                f"Error: {tool.name} has no argument '{key}'; it has {', '.join(known)}."
            )
        kind = known[key]["type"]
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise ToolError(f"Error: {tool.name}: '{key}' must be of type {kind}.")
    for key in tool.parameters["required"]:
        if key not in given:
            raise ToolError(f"Error: {tool.name} needs the argument '{key}'.")
    return given


def text_of(output: bytes) -> str:
    """UTF-8; other bytes as `\\xff`."""
    return output.decode("utf-8", errors="backslashreplace")


def cut(text: str, limit: int) -> tuple[str, int]:
    """The beginning and the end, with a notice between them; how many characters are missing."""
    if len(text) <= limit:
        return text, 0
    half = limit // 2
    missing = len(text) - 2 * half
    return f"{text[:half]}\n[... {missing} characters left out ...]\n{text[-half:]}", missing
