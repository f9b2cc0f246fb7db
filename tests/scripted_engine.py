"""A policy that says what a script tells it to: what a session's tests put in an engine's place."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlframe.invariants import check_trajectory
from rlframe.types import Int32Array, Status, Trajectory, Turn
from rollout.capture.build import Built, build
from rollout.capture.capture import Capture
from rollout.chat import ParsedTurn
from rollout.renderer import Renderer

END = "<|im_end|>"


class ScriptedEngine:
    """`say(text)` queues an answer; a callable gets the prompt's text and returns the answer. Its log has
    every prompt and answer in ids, as an engine's own log would."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.script: list[str | list[int] | Exception | Callable[[str], Any]] = []
        self.log: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.version = 0
        self.held: asyncio.Event | None = None
        self.asked = 0
        self.clock_s = 0.0

    def say(self, *answers: Any) -> None:
        self.script += answers

    def prompt(self, number: int) -> str:
        return self.renderer._tokenizer.decode(self.log[number][0])

    async def generate(
        self, input_ids: Int32Array, *, sampling: dict[str, Any], routing_key: str = ""
    ) -> Turn:
        self.asked += 1
        self.clock_s += 1.0
        started = self.clock_s
        said = self.script.pop(0)
        if callable(said):
            said = said(self.renderer._tokenizer.decode(input_ids.tolist()))
        if self.held is not None:
            await self.held.wait()
        if isinstance(said, Exception):
            raise said
        ids = said if isinstance(said, list) else self.renderer._tokenizer.encode(said)
        ids = ids[: sampling["max_new_tokens"]]
        self.log.append((tuple(input_ids.tolist()), tuple(ids)))
        number = len(self.log)
        self.clock_s += 1.0
        return Turn(
            prompt_ids=input_ids,
            output_ids=tuple(ids),
            logprobs=tuple(-(number + i / 100) for i in range(len(ids))),
            versions=(self.version,) * len(ids),
            finish_reason="stop" if ids[-1] in self.stops else "length",
            started_s=started,
            ended_s=self.clock_s,
        )

    @property
    def stops(self) -> set[int]:
        return {self.renderer.end_of_turn}


def built_exactly(capture: Capture, engine: ScriptedEngine) -> Built:
    """The traces; checked against the engine's own log: each sampled token of a call that trains
    stands in exactly one trace, and nothing else does."""
    built = build(capture)
    check_trajectory(Trajectory("t", "t", "d", Status.COMPLETED, built.traces, links=built.links))
    trained = [
        tuple(trace.token_ids[: p + 1].tolist())
        for trace in built.traces
        for p in np.flatnonzero(trace.loss_mask)
    ]
    assert len(trained) == len(set(trained)), "trained twice"
    sampled = set()
    for c in capture.calls:
        if capture.trains(c):
            path = capture.path_ids(c.id).tolist()
            sampled |= {tuple(path[: i + 1]) for i in range(c.prompt_tokens, len(path))}
    assert set(trained) == sampled
    served = {(c.prompt_tokens, tuple(capture.path_ids(c.id).tolist())) for c in capture.calls}
    assert served == {(len(p), p + o) for p, o in engine.log}, "not what the engine saw"
    return built


class JsonCalls:
    """Tool calls as `<tool_call>{...}</tool_call>`, reasoning as `<think>...</think>`."""

    def read(self, text: str, tools: Sequence[Any]) -> ParsedTurn:
        reasoning = re.match(r"<think>(.*?)</think>", text, re.DOTALL)
        rest = text[reasoning.end() :] if reasoning else text
        calls = [json.loads(found) for found in re.findall(r"<tool_call>(.*?)</tool_call>", rest)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": re.sub(r"<tool_call>.*?</tool_call>", "", rest),
        }
        if reasoning:
            message["reasoning_content"] = reasoning.group(1)
        if calls:
            message["tool_calls"] = [{"id": "", **call} for call in calls]
        cut = "a call without an end" if "<tool_call>" in message["content"] else ""
        return ParsedTurn(message, (cut,) if cut else ())


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
