"""Renderer, SGLang's parsers and session together: what is sampled comes back as messages, token for token.

A client echoes what it was given and appends results of tools or users' messages; the family's template
is bridged over every turn, and what the engine sees is what transformers would render, but for reasoning
that the template drops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from family_templates import FAMILY_TEMPLATES, KEEPS_REASONING, said, save_family_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from rlframe.types import Int32Array, Message, Turn
from rollout.capture.build import build
from rollout.capture.capture import Capture
from rollout.chat import ChatRequest
from rollout.engine.parser_check import parser_for
from rollout.renderer import Renderer
from rollout.session import Session, SessionSettings

TOOLS: tuple[Mapping[str, Any], ...] = (
    {
        "name": "read",
        "description": "Reads.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
)
WORD = st.text(
    st.characters(codec="utf-8", exclude_characters="<>[]", exclude_categories=("C", "Z"))
)
WORDS = st.lists(WORD.filter(bool), min_size=1, max_size=3).map(" ".join)
TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "reasoning": WORDS,
            "content": st.one_of(st.just(""), WORDS),
            # What XML formats can't carry: see test_engine_parsers.
            "paths": st.lists(
                WORDS.filter(lambda w: w.lower() not in ("null", "true", "false")), max_size=3
            ),
            "answer": WORDS,
            "cut": st.booleans(),
            "keeps_reasoning": st.booleans(),
        }
    ),
    min_size=1,
    max_size=5,
)


class Played:
    """One family's session; the engine samples what it is told."""

    def __init__(self, name: str, directory: Path) -> None:
        from transformers import AutoTokenizer

        self.name, self.args = name, KEEPS_REASONING.get(name, {})
        self.reference = AutoTokenizer.from_pretrained(directory)
        self.renderer = Renderer(str(directory), template_args=self.args)
        family = self.renderer.family
        self.parser = parser_for(
            self.renderer,
            tool_call_parser=family.tool_call_parser,
            reasoning_parser=family.reasoning_parser,
        )

    def session(self) -> Session:
        settings = SessionSettings(
            generate=self.generate,
            renderer=self.renderer,
            sampling={"max_new_tokens": 10_000},
            parser=self.parser,
            max_context_tokens=100_000,
            max_calls=100,
            max_output_tokens=1_000_000,
        )
        self.next: list[int] = []
        self.prompts: list[list[int]] = []
        return Session(settings, Capture(), routing_key="t")

    async def generate(self, prompt: Int32Array, **_: Any) -> Turn:
        self.prompts.append(prompt.tolist())
        count = len(self.next)
        return Turn(prompt, tuple(self.next), (-0.5,) * count, (0,) * count, "stop")

    def samples(self, turn: Mapping[str, Any]) -> None:
        calls = [{"name": "read", "arguments": {"path": path}} for path in turn["paths"]]
        text = said(self.name, reasoning=turn["reasoning"], content=turn["content"], calls=calls)
        self.next = self.reference.encode(text, add_special_tokens=False)
        if not turn["cut"]:
            stop = "<|im_end|>"
            if self.name.startswith("glm"):
                stop = "<|observation|>" if calls else "<|user|>"
            self.next.append(self.reference.convert_tokens_to_ids(stop))

    def whole(self, messages: Sequence[Message]) -> list[int]:
        shaped = [dict(message) for message in messages]
        for message in shaped:
            if "tool_calls" in message:
                message["tool_calls"] = [{"function": call} for call in message["tool_calls"]]
        ids = self.reference.apply_chat_template(
            shaped,
            tools=[{"type": "function", "function": tool} for tool in TOOLS],
            add_generation_prompt=True,
            return_dict=False,
            **self.args,
        )
        return list(ids)


@pytest.fixture(scope="module", params=sorted(FAMILY_TEMPLATES))
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    root = tmp_path_factory.mktemp("played")
    return Played(request.param, save_family_tokenizer(root, FAMILY_TEMPLATES[request.param]))


@given(turns=TURNS)
def test_every_prompt_is_what_was_sampled_and_what_is_new(played: Played, turns: Any) -> None:
    asyncio.run(converse(played, turns))


async def converse(played: Played, turns: Sequence[Mapping[str, Any]]) -> None:
    session = played.session()
    echoed: list[Message] = [{"role": "user", "content": "Begin."}]
    full = list(echoed)
    expected = played.whole(full)
    appends = True
    for turn in turns:
        played.samples(turn)
        reply = await session.chat(ChatRequest(tuple(echoed), TOOLS))
        assert played.prompts[-1] == expected
        calls = reply.message.get("tool_calls", [])
        assert [call["arguments"]["path"] for call in calls] == turn["paths"]
        assert reply.message["content"] == turn["content"]
        assert reply.message["reasoning_content"] == turn["reasoning"]
        new = results_of(calls, turn["answer"]) or [{"role": "user", "content": turn["answer"]}]
        kept = dict(reply.message)
        if not turn["keeps_reasoning"]:
            del kept["reasoning_content"]
        full += [reply.message, *new]
        echoed += [kept, *new]
        before = expected + played.next
        expected = before + played.renderer.bridge(new, last_id=before[-1])
        appends = bool(played.args) or (appends and bool(calls))
        if appends:
            assert expected == played.whole(full)
    assert session.counts.full_renders == 0
    traces = build(session.capture).traces
    assert len(traces) == 1
    assert traces[0].loss_mask.sum() == session.counts.output_tokens


def results_of(calls: Sequence[Mapping[str, Any]], answer: str) -> list[Message]:
    return [
        {"role": "tool", "content": answer, "tool_call_id": call["id"], "name": "read"}
        for call in calls
    ]
