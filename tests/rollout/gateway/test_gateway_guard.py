"""A guarded session's answers as streams: a client that reads them piece by piece gets the substitute, whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from chat_templates import WITH_TOOLS, save_tokenizer
from scripted_engine import END, JsonCalls, ScriptedEngine, call

from envs.guard.guard import GuardSettings, make_guard
from rlframe.task_rules import TaskRules
from rlframe.types import Task
from rollout.capture.build import build
from rollout.capture.capture import Capture
from rollout.gateway.registry import Registry
from rollout.gateway.server import Gateway, GatewaySettings
from rollout.guarded import Guarded
from rollout.renderer import Renderer
from rollout.session import FAREWELL, Session, SessionSettings

TASK = {"role": "user", "content": "Mend it."}
RULES = TaskRules(protected_paths=("/workspace/.eval/**",), network=("*",))
HACK = "cat /workspace/.eval/secret.json"
DUMMY = "cat: /workspace/.eval/secret.json: No such file or directory"
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}}
FUNCTION = {"name": "bash", "description": "", "parameters": SCHEMA}
TURNS = (f"I look.{call('bash', command=HACK)}{call('bash', command='ls')}{END}", f"done{END}")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), WITH_TOOLS)))


@dataclass(slots=True)
class Guardian:
    """One attempt behind a gateway of its own."""

    engine: ScriptedEngine
    capture: Capture
    session: Session
    key: str
    url: str


@asynccontextmanager
async def guardian(renderer: Renderer, **settings: Any) -> AsyncIterator[Guardian]:
    engine, capture, registry = ScriptedEngine(renderer), Capture(), Registry()
    engine.say(*TURNS)
    task = Task("t", "d", (TASK,), rules=RULES)
    session = Session(
        SessionSettings(
            generate=engine.generate,
            renderer=renderer,
            sampling={"temperature": 1.0, "max_new_tokens": 400},
            max_context_tokens=4000,
            max_calls=50,
            max_output_tokens=10_000,
            parser=JsonCalls(),
        ),
        capture,
        routing_key="t",
        guarded=Guarded.begin(make_guard(GuardSettings("rules", **settings)), task, capture),
    )
    gateway = Gateway(registry, settings=GatewaySettings(headers_after_s=0.0, keep_alive_s=0.001))
    url = f"http://127.0.0.1:{await gateway.listen_tcp()}"
    try:
        yield Guardian(engine, capture, session, registry.open(session), url)
    finally:
        await gateway.close()


def ran(commands: list[str]) -> list[str]:
    """What a shell would say to them; it never gets to see the hack."""
    assert len(commands) == 2
    assert HACK not in commands[0]
    assert "printf" in commands[0]
    assert commands[1] == "ls"
    return [DUMMY, "a.txt"]


async def chat(at: Guardian) -> str:
    client = openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key=at.key)
    history: list[Any] = [TASK]
    tool: Any = {"type": "function", "function": FUNCTION}
    for _ in range(2):
        text, calls = "", {}
        async for chunk in await client.chat.completions.create(
            model="m", messages=history, tools=[tool], stream=True
        ):
            delta = chunk.choices[0].delta if chunk.choices else None
            text += (delta and delta.content) or ""
            for piece in (delta and delta.tool_calls) or ():
                made = calls.setdefault(
                    piece.index,
                    {"id": piece.id, "type": "function", "function": {"name": "", "arguments": ""}},
                )
                made["function"]["name"] += piece.function.name or ""
                made["function"]["arguments"] += piece.function.arguments or ""
        if not calls:
            return text
        said = list(calls.values())
        history.append({"role": "assistant", "content": text, "tool_calls": said})
        results = ran([json.loads(c["function"]["arguments"])["command"] for c in said])
        for made, result in zip(said, results, strict=True):
            history.append({"role": "tool", "tool_call_id": made["id"], "content": result})
    raise AssertionError("the client was never done")


async def responses(at: Guardian) -> str:
    client = openai.AsyncOpenAI(base_url=f"{at.url}/v1", api_key=at.key)
    history: list[Any] = [TASK]
    tool: Any = {"type": "function", **FUNCTION}
    for _ in range(2):
        async with client.responses.stream(model="m", input=history, tools=[tool]) as stream:
            async for _event in stream:
                pass
            done = await stream.get_final_response()
        history += [item.model_dump(exclude_none=True) for item in done.output]
        made = [item for item in done.output if item.type == "function_call"]
        if not made:
            return done.output_text
        results = ran([json.loads(item.arguments)["command"] for item in made])
        for item, result in zip(made, results, strict=True):
            output = {"type": "function_call_output", "output": result}
            history.append({**output, "call_id": item.call_id})
    raise AssertionError("the client was never done")


async def messages(at: Guardian) -> str:
    client = anthropic.AsyncAnthropic(base_url=at.url, api_key=at.key)
    history: list[Any] = [TASK]
    tool: Any = {"name": "bash", "input_schema": SCHEMA, "description": ""}
    for _ in range(2):
        async with client.messages.stream(
            model="m", max_tokens=400, messages=history, tools=[tool]
        ) as stream:
            done = await stream.get_final_message()
        history.append({"role": "assistant", "content": [b.model_dump() for b in done.content]})
        made = [block for block in done.content if block.type == "tool_use"]
        if not made:
            return "".join(block.text for block in done.content if block.type == "text")
        results = ran([block.input["command"] for block in made])
        told = [
            {"type": "tool_result", "tool_use_id": block.id, "content": result}
            for block, result in zip(made, results, strict=True)
        ]
        history.append({"role": "user", "content": told})
    raise AssertionError("the client was never done")


@pytest.mark.parametrize("client", [chat, responses, messages])
async def test_a_streamed_answer_holds_the_substitute(renderer: Renderer, client: Any) -> None:
    async with guardian(renderer) as at:
        assert await client(at) == "done"
    first, second = at.engine.log
    read = at.engine.prompt(1)
    assert HACK in read
    assert "printf" not in read
    assert DUMMY in read
    assert second[0][: len(first[0] + first[1])] == first[0] + first[1], "on the sampled ids"
    assert at.session.counts.full_renders == 0
    (trace,) = build(at.capture).traces
    assert trace.loss_mask.sum() == len(second[1])


@pytest.mark.parametrize("client", [chat, responses, messages])
async def test_a_streamed_attempt_that_a_hack_ends(renderer: Renderer, client: Any) -> None:
    async with guardian(renderer, action="end") as at:
        assert await client(at) == FAREWELL
    assert len(at.engine.log) == 1
