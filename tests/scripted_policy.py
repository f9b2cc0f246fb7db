"""A policy in an engine's place that answers by a rule, and an engine's own log of what it has sampled.

Answers are sampled character by character. The tokenizer would merge some of them ("in"), so a prompt in
which an answer was rendered anew has other ids than the log, and a check against the log finds it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from family_templates import said

from rlframe.types import Int32Array, Turn
from rollout.renderer import Renderer

STEP = 2.0**-14
"""Between the logprobs of two tokens: with the call's number before the point, all are distinct and
exact in float32."""
MEETING_S = 60.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked, as text."""

    text: str

    @property
    def messages(self) -> list[tuple[str, str]]:
        found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", self.text, re.DOTALL)
        return [(role, content) for role, content in found]

    @property
    def system(self) -> str:
        return "\n".join(text for role, text in self.messages if role == "system")

    @property
    def answers(self) -> int:
        """Assistant's messages in it, whoever wrote them."""
        return sum(role == "assistant" for role, _ in self.messages)

    @property
    def last(self) -> str:
        """What came after the assistant's last message: the user, or results of tools."""
        tail: list[str] = []
        for role, text in reversed(self.messages):
            if role == "assistant":
                break
            tail.append(text)
        return "\n".join(reversed(tail))

    @property
    def results(self) -> list[str]:
        """Of the tools that the last turn called."""
        return re.findall(r"<tool_response>\n(.*?)\n</tool_response>", self.last, re.DOTALL)

    @property
    def users(self) -> str:
        """All that the user has said, results of tools included."""
        return "\n".join(text for role, text in self.messages if role == "user")

    @property
    def tools(self) -> set[str]:
        return set(
            re.findall(r'^\{"type": "function", "function": \{"name": "([^"]+)"', self.text, re.M)
        )


def says(content: str = "", *calls: Mapping[str, Any], reasoning: str = "thinking in it") -> str:
    """What a Qwen3 samples: reasoning, text, calls."""
    return said("qwen3", reasoning=reasoning, content=content, calls=calls)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry of the engine's log."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    prompt: Prompt
    answer: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """Calls of which none is answered before all of them are there: they must be made in parallel."""

    of: Callable[[Prompt], bool]
    barrier: asyncio.Barrier


@dataclass(slots=True)
class RuledEngine:
    """`rule(prompt)` gives the answer's text, without what ends it."""

    renderer: Renderer
    rule: Callable[[Prompt], str]
    meeting: Meeting | None = None
    log: list[Sampled] = field(default_factory=list)

    async def generate(
        self, input_ids: Int32Array, *, sampling: Mapping[str, Any], routing_key: str = ""
    ) -> Turn:
        started_s = time.monotonic()
        tokenizer = self.renderer._tokenizer
        prompt = Prompt(tokenizer.decode(input_ids.tolist()))
        if self.meeting is not None and self.meeting.of(prompt):
            await asyncio.wait_for(self.meeting.barrier.wait(), MEETING_S)
        answer = self.rule(prompt)
        characters = re.findall(r"</?\w+>|.", answer, re.DOTALL)  # tags are tokens
        ids = [i for piece in characters for i in tokenizer.encode(piece)]
        ids = [*ids, self.renderer.end_of_turn][: sampling["max_new_tokens"]]
        number = len(self.log) + 1
        self.log.append(Sampled(tuple(input_ids.tolist()), tuple(ids), prompt, answer))
        return Turn(
            prompt_ids=input_ids,
            output_ids=tuple(ids),
            logprobs=tuple(-(number + i * STEP) for i in range(len(ids))),
            versions=(3,) * len(ids),
            finish_reason="stop" if ids[-1] == self.renderer.end_of_turn else "length",
            started_s=started_s,
            ended_s=time.monotonic(),
        )
