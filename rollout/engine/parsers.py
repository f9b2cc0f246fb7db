"""Sampled text to an assistant's message: SGLang's own parsers of reasoning and tool calls.

SGLang's parsers leave out what they cannot read: a call with broken JSON, a call of a tool that is not
there, text between calls, a call that was cut. Here nothing is lost. Where a format puts each call
between two marks, every block is handed to SGLang alone, and stays in the content as it was if SGLang
makes no proper call of it. For other formats SGLang's answer stands,
and where it finds no call at all, the whole text is content.

Importing SGLang's parsers imports torch: it takes seconds and half a gigabyte, so a process does it when
it makes a `TurnParser`, not before.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlframe.errors import UserError, nearest
from rollout.chat import ParsedTurn
from rollout.engine.cpu_imports import install

_JSON_LINES = ("<tool_call>\n", "\n</tool_call>")  # a newline in a JSON string is escaped
_TAGS = ("<tool_call>", "</tool_call>")
MARKS = {
    "qwen": _JSON_LINES,
    "qwen25": _JSON_LINES,
    "hermes": _TAGS,
    "qwen3_coder": _TAGS,
    "nanbeige": _TAGS,
    "step3p5": _TAGS,
    "glm": _TAGS,
    "glm45": _TAGS,
    "glm47": _TAGS,
}
"""What each call stands between, by SGLang's name of the parser."""
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Block:
    """A stretch of text: outside of calls, or one call with its marks."""

    text: str
    call: bool
    closed: bool = True


class TurnParser:
    """Both parsers, by SGLang's names; empty: none. UserError for a name that SGLang doesn't know.

    `opens_reasoning`: the prompt ends inside of the reasoning (`Renderer.opens_reasoning`).
    """

    def __init__(
        self,
        *,
        tool_call_parser: str = "",
        reasoning_parser: str = "",
        opens_reasoning: bool = False,
    ) -> None:
        self._tool_call_parser, self._reasoning_parser = tool_call_parser, reasoning_parser
        self._opens_reasoning = opens_reasoning
        if tool_call_parser or reasoning_parser:
            self._import()

    def read(self, text: str, tools: Tools) -> ParsedTurn:
        """Of a turn's text, without the token that ended it. Never raises.

        `content` is always there, perhaps empty; `reasoning_content` and `tool_calls` where there are
        any. The calls' ids are unique in the message only.
        """
        reasoning, said = self._split_reasoning(text)
        calls: list[dict[str, Any]] = []
        malformed: list[str] = []
        if self._tool_call_parser and tools:
            said, calls, malformed = self._split_calls(said, tools)
        message: dict[str, Any] = {"role": "assistant"}
        message["content"] = said.strip() if reasoning is not None or calls else said
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return ParsedTurn(message, tuple(malformed))

    def _import(self) -> None:
        """UserError for an unknown name."""
        install()
        from sglang.srt.entrypoints.openai.protocol import Tool
        from sglang.srt.function_call.function_call_parser import FunctionCallParser
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        # What they warn of is part of the answer here.
        logging.getLogger("sglang.srt.function_call").setLevel(logging.CRITICAL)
        self._tool, self._calls_of, self._reasoning_of = Tool, FunctionCallParser, ReasoningParser
        _check("tool_call_parser", self._tool_call_parser, FunctionCallParser.ToolCallParserEnum)
        _check("reasoning_parser", self._reasoning_parser, ReasoningParser.DetectorMap)

    def _split_reasoning(self, text: str) -> tuple[str | None, str]:
        """None: no reasoning was looked for, or there is none."""
        if not self._reasoning_parser:
            return None, text
        stripped = text.lstrip()  # GLM-4.5 begins with a newline, which hides the opening tag
        parser = self._reasoning_of(
            self._reasoning_parser,
            stream_reasoning=False,
            force_reasoning=True if self._opens_reasoning else None,
        )
        try:
            reasoning, said = parser.parse_non_stream(stripped)
        except Exception:  # noqa: BLE001 - outside code on sampled text
            return None, text
        if said == stripped:
            return None, text
        return (reasoning or "").strip(), said or ""

    def _split_calls(self, text: str, tools: Tools) -> tuple[str, list[dict[str, Any]], list[str]]:
        """The text without the calls, the calls, and why something is not one."""
        said = ""
        calls: list[dict[str, Any]] = []
        malformed: list[str] = []
        try:
            shaped = [self._tool(type="function", function=dict(tool)) for tool in tools]
        except ValueError as error:
            return text, calls, [f"the tools are wrong: {error}"[:200]]
        names = {tool.function.name for tool in shaped}
        marks = MARKS.get(self._tool_call_parser)
        for block in _blocks(text, *marks) if marks else [_Block(text, call=True)]:
            found, rest, why = self._calls_in(block, shaped, names)
            calls += found
            said += rest
            malformed += [why] if why else []
        numbered = [{"id": f"call_{n}", **call} for n, call in enumerate(calls)]
        return said, numbered, malformed

    def _calls_in(
        self, block: _Block, tools: list[Any], names: set[str]
    ) -> tuple[list[dict[str, Any]], str, str]:
        """The block's calls, what stays of its text, and why there is no call in it."""
        if not block.call:
            return (
                [],
                block.text,
                "a tag of a call without a call" if "<tool_call>" in block.text else "",
            )
        if not block.closed:
            return [], block.text, "a call is not closed"
        parser = self._calls_of(tools, self._tool_call_parser)
        try:
            if not parser.has_tool_call(block.text):
                return [], block.text, ""
            rest, items = parser.parse_non_stream(block.text)
            calls = [_call(item.name, item.parameters, names) for item in items]
        except Exception as error:  # noqa: BLE001 - outside code on sampled text
            return [], block.text, f"{type(error).__name__}: {error}"[:200]
        if not calls:
            return [], block.text, "nothing that can be read as a call of a known tool"
        return calls, rest, ""


def _call(name: Any, arguments: str, names: set[str]) -> dict[str, Any]:
    """ValueError unless it is a call of a known tool with an object that is proper JSON."""
    if name not in names:
        raise ValueError(f"there is no tool {name!r}")
    read = json.loads(arguments)
    if not isinstance(read, dict):
        raise ValueError("the arguments are no object")
    # Neither NaN nor half a surrogate pair can be sent to a client.
    json.dumps(read, allow_nan=False, ensure_ascii=False).encode()
    return {"name": name, "arguments": read}


def _blocks(text: str, opening: str, closing: str) -> Iterator[_Block]:
    at = 0
    while (start := text.find(opening, at)) >= 0:
        if start > at:
            yield _Block(text[at:start], call=False)
        end = text.find(closing, start + len(opening))
        if end < 0:
            yield _Block(text[start:], call=True, closed=False)
            return
        at = end + len(closing)
        yield _Block(text[start:at], call=True)
    if at < len(text):
        yield _Block(text[at:], call=False)


def _check(key: str, name: str, known: Mapping[str, Any]) -> None:
    if name and name not in known:
        raise UserError(f"rollout.{key}: SGLang has no parser '{name}'.{nearest(name, known)}")
