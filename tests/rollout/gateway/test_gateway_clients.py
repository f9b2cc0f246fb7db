"""Who is calling, and what for, by what each program sends (versions in the client's module)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict
from scripted_session import ScriptedSession, served

from rollout.capture.call import CallKind
from rollout.chat import ChatRequest, Identity
from rollout.gateway.registry import Registry, Seat
from rollout.gateway.requests import chat_request
from rollout.gateway.wires import chat_completions, messages, responses

TASK = {"role": "user", "content": "Fix the bug."}
TOOL = {"type": "function", "function": {"name": "bash", "parameters": {}}}


@pytest.fixture
def seat() -> Seat:
    registry = Registry()
    key = registry.open(ScriptedSession())
    return registry.find({"x-api-key": key})


def ask(seat: Seat, wire: Any, body: dict[str, Any], **headers: str) -> ChatRequest:
    named = CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()})
    return chat_request(seat, wire, body, asked=wire.parse(body), headers=named)


def claude(
    seat: Seat, *more: Any, model: str = "policy", system: str = "", **headers: str
) -> Identity:
    body = {"model": model, "messages": [TASK, *more], "system": system}
    return ask(seat, messages, body, x_claude_code_session_id="s", **headers).identity


def test_claude_code_threads(seat: Seat) -> None:
    assert claude(seat) == Identity(known=True)
    assert claude(seat, x_claude_code_agent_id="a") == Identity(thread="a", known=True)
    nested = claude(seat, x_claude_code_agent_id="b", X_Claude_Code_Parent_Agent_Id="a")
    assert nested == Identity(thread="b", parent_thread="a", known=True)


def test_claude_code_compaction_is_an_extra_block_after_the_tool_results(seat: Seat) -> None:
    turn = {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}],
    }
    result = {"type": "tool_result", "tool_use_id": "t", "content": "ok"}
    prompt = (
        "CRITICAL: Respond with TEXT ONLY. Do NOT call any tools.\n\nYour task is to create a "
        "detailed summary of the conversation so far, paying close attention to the user's requests."
    )
    instruction = {"type": "text", "text": prompt}
    compacting = claude(seat, turn, {"role": "user", "content": [result, instruction]})
    assert compacting.kind is CallKind.COMPACTION
    after = {"role": "system", "content": "a note"}
    compacting = claude(seat, turn, {"role": "user", "content": [result, instruction]}, after)
    assert compacting.kind is CallKind.COMPACTION
    # In a file that the agent reads, and in a turn long past, it is no instruction.
    read = {**result, "content": prompt}
    assert claude(seat, turn, {"role": "user", "content": [read]}).kind is None
    past = {"role": "user", "content": prompt}
    assert claude(seat, past, turn, {"role": "user", "content": [result]}).kind is None


def test_claude_code_side_calls(seat: Seat) -> None:
    titled = claude(seat, system="Generate a concise, sentence-case title (3-7 words) for this.")
    assert titled.kind is CallKind.SIDE
    assert claude(seat, model="claude-haiku-4-5-20251001").kind is CallKind.SMALL_MODEL
    assert claude(seat, model="policy-small").kind is CallKind.SMALL_MODEL


def codex(seat: Seat, metadata: dict[str, Any], **headers: str) -> Identity:
    body = {"model": "policy", "input": "x"}
    given = {"x_codex_turn_metadata": json.dumps(metadata), **headers}
    return ask(seat, responses, body, **given).identity


def test_codex_threads_and_compaction(seat: Seat) -> None:
    turn = {"request_kind": "turn", "window_number": 0, "thread_source": "user"}
    main = codex(seat, turn, thread_id="T0", session_id="T0")
    assert main == Identity(known=True)
    child = codex(
        seat,
        {**turn, "thread_source": "subagent", "parent_thread_id": "T0"},
        thread_id="T1",
        session_id="T0",
        x_codex_parent_thread_id="T0",
        x_openai_subagent="collab_spawn",
    )
    assert child == Identity(thread="T1", known=True)
    grandchild = codex(
        seat, {**turn, "thread_source": "subagent"}, thread_id="T2", x_codex_parent_thread_id="T1"
    )
    assert grandchild == Identity(thread="T2", parent_thread="T1", known=True)
    compacting = {"request_kind": "compaction", "compaction": {"trigger": "auto"}}
    assert codex(seat, compacting, thread_id="T0").kind is CallKind.COMPACTION
    assert codex(seat, {}, thread_id="T0", x_openai_subagent="compact").kind is CallKind.COMPACTION


def test_terminus_2_asks_for_a_summary(seat: Seat) -> None:
    def asked(text: str, tools: list[Any]) -> Identity:
        user = {"role": "user", "content": text}
        body = {"model": "policy", "messages": [TASK, {"role": "assistant", "content": "x"}, user]}
        return ask(seat, chat_completions, {**body, "tools": tools}).identity

    request = "You are about to hand off your work to another AI agent.\n  Please summarise."
    assert asked(request, []) == Identity(kind=CallKind.COMPACTION)
    assert asked(request, [TOOL]) == Identity()
    assert asked(f"In the file:\n{request}", []) == Identity()


def opencode(seat: Seat, *history: Any, tools: bool = True, **headers: str) -> Identity:
    body = {"model": "policy", "messages": [*history, TASK], "tools": [TOOL] if tools else []}
    return ask(seat, chat_completions, body, **headers).identity


def test_opencode(seat: Seat) -> None:
    main = {"x_session_id": "S0", "x_session_affinity": "S0"}
    child = {"x_session_id": "S1", "x_session_affinity": "S1", "x_parent_session_id": "S0"}
    assert opencode(seat, **main) == Identity(known=True)
    assert opencode(seat, **child) == Identity(thread="S1", known=True)
    title = {"role": "system", "content": "You are a title generator. You output ONLY a title."}
    assert opencode(seat, title, tools=False, **main).kind is CallKind.SIDE
    for system in (
        "You are an anchored context summarization assistant for coding sessions.",
        "You are a helpful AI assistant tasked with summarizing conversations.",
    ):
        summary = {"role": "system", "content": system}
        assert opencode(seat, summary, tools=False, **main).kind is CallKind.COMPACTION


def test_qwen_code(seat: Seat) -> None:
    agent = {"User_Agent": "QwenCode/0.15.10 (linux; x64)"}
    assert opencode(seat, **agent) == Identity()
    summary = {
        "role": "system",
        "content": "You are the component that summarizes internal chat history into a given "
        "structure.\n",
    }
    assert opencode(seat, summary, **agent).kind is CallKind.COMPACTION


def test_any_other_program(seat: Seat) -> None:
    assert opencode(seat, User_Agent="OpenAI/Python 2.54.0") == Identity()
    body = {"model": "openai/policy-small", "messages": [TASK]}
    assert ask(seat, chat_completions, body).identity == Identity(kind=CallKind.SMALL_MODEL)


def test_digests(seat: Seat) -> None:
    """Equal where the model is asked the same by the same thread, whatever else the body says."""

    def digest(content: Any, **more: Any) -> str:
        body = {"max_tokens": 5, "messages": [{"role": "user", "content": content}], **more}
        return ask(seat, messages, body).digest

    plain = digest([{"type": "text", "text": "x"}])
    marked = [{"text": "x", "type": "text", "cache_control": {"type": "ephemeral"}}]
    assert digest(marked, metadata={"user_id": "1"}, temperature=1, stream=True) == plain
    assert digest("y") != plain
    assert digest("x", tools=[{"name": "t", "input_schema": {}}]) != plain
    assert digest("x", max_tokens=6) != plain
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    other = ask(seat, messages, body, x_claude_code_session_id="s", x_claude_code_agent_id="a")
    assert other.digest != plain
    as_chat = {"max_tokens": 5, "messages": body["messages"]}
    assert ask(seat, chat_completions, as_chat).digest != plain


async def test_main_names_are_of_one_attempt() -> None:
    """What one attempt's client calls its main thread says nothing about another's."""
    async with served() as at:
        other = at.registry.open(ScriptedSession())
        first = at.registry.find({"x-api-key": at.key})
        second = at.registry.find({"x-api-key": other})
    opencode(first, x_session_id="S0", x_session_affinity="S0")
    child = {"x_session_id": "S1", "x_session_affinity": "S1", "x_parent_session_id": "S0"}
    assert opencode(first, **child).parent_thread == ""
    assert opencode(second, **child).parent_thread == "S0"
