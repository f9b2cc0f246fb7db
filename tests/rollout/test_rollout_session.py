"""What a conversation's tokens become, case by case: what is served, what trains, how many traces.

The numbers in the names are those of the design page (04-agents.md), section 2.1.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_engine import END, call
from session_attempt import SYSTEM, TASK, TOOLS, Attempt, result, user

from rlframe.errors import InfraFault
from rlframe.types import LinkKind
from rollout.renderer import Renderer


async def test_1_1_one_turn(attempt: Attempt) -> None:
    reply = await attempt.ask([SYSTEM, TASK], "Done." + END)
    assert reply.message == {"role": "assistant", "content": "Done."}
    assert (reply.finish_reason, reply.output_tokens) == ("stop", 6)
    assert reply.prompt_tokens == len(attempt.engine.log[0][0])
    assert attempt.trained() == ["Done." + END]


async def test_1_2_clean_turns_with_a_tool_are_one_trace(attempt: Attempt) -> None:
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, "Look." + call("bash", cmd="ls") + END)
    assert first.finish_reason == "tool_calls"
    messages += [first.message, result("a.py", first)]
    await attempt.ask(messages, "Done." + END)
    assert len(attempt.built().traces) == 1
    assert attempt.session.counts.full_renders == 0
    assert attempt.engine.prompt(1).endswith(
        "</tool_call><|im_end|>\n<|im_start|>tool\na.py<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("edited", ["system", "user", "tools"])
async def test_1_3_and_1_4_another_beginning_is_another_trace(
    attempt: Attempt, edited: str
) -> None:
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, "One." + END)
    messages += [first.message, user("On.")]
    tools = TOOLS
    if edited == "system":
        messages[0] = {"role": "system", "content": "Another agent."}
    elif edited == "user":
        messages[1] = user("Another task.")
    else:
        tools = ()
    await attempt.ask(messages, "Two." + END, tools=tools)
    assert attempt.trained() == ["One." + END, "Two." + END]
    assert attempt.session.counts.full_renders == 1


async def test_1_5_the_same_prompt_sampled_twice_are_two_traces(attempt: Attempt) -> None:
    await attempt.ask([SYSTEM, TASK], "One." + END)
    await attempt.ask([SYSTEM, TASK], "Other." + END)
    built = attempt.built()
    assert attempt.trained() == ["One." + END, "ther." + END]  # the O is one token of one path
    assert [link.kind for link in built.links] == [LinkKind.CONTINUES]


async def test_1_6_and_1_8_several_tool_results_after_parallel_calls(attempt: Attempt) -> None:
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, call("bash", cmd="a") + call("bash", cmd="b") + END)
    ids = [c["id"] for c in first.message["tool_calls"]]
    assert len(set(ids)) == 2
    messages += [first.message, result("1", first, 0), result("2", first, 1)]
    await attempt.ask(messages, "Done." + END)
    assert len(attempt.built().traces) == 1


async def test_1_7_tokens_that_no_tokenizer_makes_are_kept(
    attempt: Attempt, tools_renderer: Renderer
) -> None:
    """The text of the turn comes back; its ids never come from it."""
    byte = tools_renderer._tokenizer._tokenizer.token_to_id("ÿ")
    odd = [byte, *tools_renderer._tokenizer.encode("x"), byte, tools_renderer.end_of_turn]
    assert tools_renderer._tokenizer.encode(tools_renderer._tokenizer.decode(odd)) != odd
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, odd)
    await attempt.ask([*messages, first.message, user("On.")], "Done." + END)
    (trace,) = attempt.built().traces
    assert trace.token_ids[trace.loss_mask].tolist()[: len(odd)] == odd


async def test_1_9_sessions_know_nothing_of_each_other(tools_renderer: Renderer) -> None:
    one, other = Attempt(tools_renderer), Attempt(tools_renderer)
    first = await one.ask([SYSTEM, TASK], "One." + END)
    other.engine.say("Other." + END)
    await other.ask([SYSTEM, TASK, first.message, user("On.")])
    assert other.session.counts.full_renders == 1
    assert other.trained() == ["Other." + END]
    assert one.trained() == ["One." + END]


async def test_1_10_an_empty_answer_is_the_engines_fault(attempt: Attempt) -> None:
    async def nothing(ids, *, sampling, routing_key):
        turn = await attempt.engine.generate(ids, sampling=sampling)
        return type(turn)(**{**{f: getattr(turn, f) for f in turn.__slots__}, "output_ids": ()})

    object.__setattr__(attempt.session._settings, "generate", nothing)
    with pytest.raises(InfraFault, match="without a token"):
        await attempt.ask([SYSTEM, TASK], "x" + END)
    assert attempt.capture.calls == []


async def test_what_the_engine_returns_besides_is_in_the_log(attempt: Attempt) -> None:
    async def with_experts(ids, *, sampling, routing_key):
        turn = await attempt.engine.generate(ids, sampling=sampling)
        return replace(turn, extras={"routed_experts": "AAAAAA=="})

    object.__setattr__(attempt.session._settings, "generate", with_experts)
    await attempt.ask([SYSTEM, TASK], "x" + END)
    (logged,) = attempt.capture.calls
    assert logged.extras == {"routed_experts": "AAAAAA=="}


async def test_2_3_to_2_7_a_rewritten_turn_splits_where_it_differs(attempt: Attempt) -> None:
    """Nothing that was sampled is masked away, however long the drift: the trie splits in the turn."""
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, "A long first answer." + END)
    rewritten = {"role": "assistant", "content": "A long first ANSWER."}
    messages += [rewritten, user("On.")]
    await attempt.ask(messages, "Two." + END)
    assert first.message["content"] == "A long first answer."
    assert attempt.trained() == ["A long first answer." + END, "Two." + END]
    shared, other = (t.token_ids.tolist() for t in attempt.built().traces)
    same = next(i for i, (a, b) in enumerate(zip(shared, other, strict=False)) if a != b)
    assert attempt.text(shared[:same]).endswith("A long first ")


async def test_2_10_a_turn_that_two_branches_share_trains_once(attempt: Attempt) -> None:
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, "Shared." + END)
    messages.append(first.message)
    await attempt.ask([*messages, user("Left.")], "L." + END)
    await attempt.ask([*messages, user("Right.")], "R." + END)
    assert attempt.trained() == ["Shared." + END + "L." + END, "R." + END]


async def test_2_11_a_fabricated_assistant_never_trains(attempt: Attempt) -> None:
    """qwen-code begins with "Got it. Thanks for the context!", aider with few-shot answers."""
    messages = [
        SYSTEM,
        user("Context."),
        {"role": "assistant", "content": "Got it. Thanks for the context!"},
        TASK,
    ]
    first = await attempt.ask(messages, "One." + END)
    await attempt.ask([*messages, first.message, user("On.")], "Two." + END)
    assert attempt.trained() == ["One." + END + "Two." + END]
    assert attempt.session.counts.full_renders == 1  # the first prompt alone


async def test_3_7_three_leaves_of_two_shared_turns(attempt: Attempt) -> None:
    messages = [SYSTEM, TASK]
    a = await attempt.ask(messages, "A." + END)
    messages += [a.message, user("1")]
    b = await attempt.ask(messages, "B." + END)
    messages += [b.message]
    for leaf in "xyz":
        await attempt.ask([*messages, user(leaf)], leaf.upper() + "." + END)
    assert attempt.trained() == [f"A.{END}B.{END}X.{END}", f"Y.{END}", f"Z.{END}"]
    assert [(link.parent, link.child) for link in attempt.built().links] == [(0, 1), (1, 2)]


async def test_echo_equivalent_forms_keep_the_stored_ids(attempt: Attempt) -> None:
    messages = [SYSTEM, TASK]
    said = "<think>hm</think> Look. " + call("bash", cmd="ls", all=True) + END
    first = await attempt.ask(messages, said)
    echo = {
        "role": "assistant",
        "content": "Look.",  # stripped, and without its reasoning
        "tool_calls": [
            {**first.message["tool_calls"][0], "arguments": {"all": True, "cmd": "ls", "n": None}}
        ],
    }
    await attempt.ask([*messages, echo, result("a", first)], "Done." + END)
    assert len(attempt.built().traces) == 1
    echo["tool_calls"][0] = {
        **echo["tool_calls"][0],
        "id": "theirs",
        "arguments": {"all": True, "cmd": "ls"},
    }
    await attempt.ask([*messages, echo, result("b", first)], "Done too." + END)
    assert attempt.session.counts.full_renders == 0


async def test_echo_with_a_parallel_call_missing_is_another_message(attempt: Attempt) -> None:
    messages = [SYSTEM, TASK]
    first = await attempt.ask(messages, call("bash", cmd="a") + call("bash", cmd="b") + END)
    echo = {**first.message, "tool_calls": first.message["tool_calls"][:1]}
    await attempt.ask([*messages, echo, result("1", first)], "Done." + END)
    assert attempt.session.counts.full_renders == 1
    assert len(attempt.built().traces) == 2
