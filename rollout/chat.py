"""Chat as every mode and every wire protocol speaks it inside rlframe: one neutral form.

Messages are those of OpenAI chat completions, narrowed:

    {"role": "system" | "user", "content": str}
    {"role": "assistant", "content": str, "reasoning_content": str, "tool_calls": [ToolCall, ...]}
    {"role": "tool", "content": str, "tool_call_id": str, "name": str}

where a ToolCall is {"id": str, "name": str, "arguments": dict}. Keys without a value are left out;
`developer` is `system`. Tools are {"name": str, "description": str, "parameters": JSON schema}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlframe.types import Message
from rollout.capture.call import CallKind


@dataclass(frozen=True, slots=True)
class Identity:
    """What a client says about who is calling (headers, metadata); empty: it says nothing."""

    thread: str = ""
    """Of a sub-agent; empty: the main thread, or unknown."""
    parent_thread: str = ""
    kind: CallKind | None = None
    known: bool = False
    """The client tells its threads apart: an empty `thread` is then the main one for certain."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for an assistant's turn."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    identity: Identity = Identity()
    max_new_tokens: int | None = None
    """What the client asks for; the configuration's limit stands all the same."""
    model: str = ""
    """The name that the client used: a hint for `kind`, nothing else."""
    digest: str = ""
    """Of the body and the wire; equal for a retry."""
    retry: bool = False
    """The client says that it asks again (`x-stainless-retry-count` > 0)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One assistant's turn, as a client gets it."""

    message: Message
    finish_reason: str
    """`stop`, `tool_calls` or `length`."""
    prompt_tokens: int
    output_tokens: int
    call_id: int
    cached_tokens: int = 0
    synthetic: bool = False


class AttemptOver(Exception):  # noqa: N818 - a state, not an error
    """The attempt has ended or its budget is spent: no further call is served. A gateway answers 400."""


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """An assistant's message; where something in it looked like a call and was none, why."""

    message: Message
    malformed: tuple[str, ...] = ()
    """One reason for each such place; its text is part of the message's content."""


class Parser(Protocol):
    """Sampled text to an assistant's message (`rollout.engine.parsers.TurnParser`)."""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> ParsedTurn: ...


class PlainText:
    """No reasoning and no tool calls are looked for."""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> ParsedTurn:
        return ParsedTurn({"role": "assistant", "content": text})


def with_call_ids(message: Message, call_id: int) -> Message:
    """Its tool calls by ids that are unique in the attempt, and the same whenever it is made anew."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    named = [{**call, "id": f"call_{call_id}_{n}"} for n, call in enumerate(calls)]
    return {**message, "tool_calls": named}


def tool_result(content: str, call: Mapping[str, Any]) -> Message:
    """What a tool answered to one call."""
    return {"role": "tool", "content": content, "tool_call_id": call["id"], "name": call["name"]}
