"""Parsers that fit the chat template: what the template itself writes, they must be able to read.

A model is taught its format by its template. With another format's parser no call would ever be found, and
nothing would fail: the reward alone would stay low.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlframe.errors import TaskFault, UserError
from rlframe.types import Message
from rollout.engine.parsers import TurnParser
from rollout.renderer import Renderer

_TOOL: Mapping[str, Any] = {
    "name": "look_up",
    "description": "",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
}
_CALL: Mapping[str, Any] = {"id": "call_0", "name": "look_up", "arguments": {"word": "oak"}}
_REASONING = "so be it"


def parser_for(renderer: Renderer, *, tool_call_parser: str, reasoning_parser: str) -> TurnParser:
    """UserError for a name that SGLang doesn't know, for a template that does not show tools to the
    model, and for a parser that can't read what the template writes. Both names empty: plain text."""
    parser = TurnParser(
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        opens_reasoning=renderer.opens_reasoning,
    )
    if tool_call_parser:
        _check_calls(renderer, tool_call_parser)
    if reasoning_parser:
        _check_reasoning(renderer, parser, reasoning_parser)
    return parser


def _check_calls(renderer: Renderer, name: str) -> None:
    if not renderer.shows_tools:
        raise UserError(
            f"rollout.tool_call_parser={name}: the chat template of model.tokenizer does not write tools "
            "or their results into the prompt, so the model would never see them"
        )
    answer = {"tool_calls": [_CALL]}
    answers: list[Message] = [answer, {**answer, "reasoning_content": _REASONING}]
    parser = TurnParser(tool_call_parser=name)
    written = [text for answer in answers if (text := _written(renderer, answer))]
    if written and not any(_calls(parser, text) for text in written):
        fits = renderer.family.tool_call_parser
        raise UserError(
            f"rollout.tool_call_parser={name} can't read a call as the chat template writes it: "
            f"{written[0]!r}." + (f" Try {fits}." if fits else "")
        )


def _check_reasoning(renderer: Renderer, parser: TurnParser, name: str) -> None:
    if not renderer.opens_reasoning and parser.read("yes", ()).message["content"] != "yes":
        raise UserError(
            f"rollout.reasoning_parser={name} takes every answer for reasoning at first, but the chat "
            "template's prompt does not begin it"
        )
    text = _written(renderer, {"content": "yes", "reasoning_content": _REASONING})
    if _REASONING not in text:
        return  # the template says nothing about it
    if parser.read(text, ()).message.get("reasoning_content") != _REASONING:
        fits = renderer.family.reasoning_parser
        raise UserError(
            f"rollout.reasoning_parser={name} can't read reasoning as the chat template writes it: "
            f"{text!r}." + (f" Try {fits}." if fits else "")
        )


def _written(renderer: Renderer, answer: Message) -> str:
    """Empty where the template has no place for it."""
    try:
        return renderer.answer_text({"role": "assistant", "content": "", **answer})
    except (UserError, TaskFault):
        return ""


def _calls(parser: TurnParser, text: str) -> bool:
    calls = parser.read(text, (_TOOL,)).message.get("tool_calls") or [{}]
    return bool(calls[0].get("arguments") == _CALL["arguments"])
