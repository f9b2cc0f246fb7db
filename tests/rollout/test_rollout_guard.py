"""A guard in both modes: what the environment and the client see, what the policy reads, what trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_templates import QWEN3, save_family_tokenizer
from scripted_policy import Prompt, RuledEngine, call, says

from envs.guard.guard import GuardSettings, make_guard
from rlframe.guard_statistics import guard_metrics
from rlframe.interfaces import RolloutRequest, StepResult
from rlframe.task_rules import TaskRules
from rlframe.types import Message, Status, Task, Trajectory
from rollout.capture.build import build
from rollout.capture.call_log import read_calls
from rollout.capture.capture import Capture
from rollout.chat import AttemptOver, ChatRequest, tool_result
from rollout.engine.parser_check import parser_for
from rollout.guarded import Guarded
from rollout.modes.white_box import Limits, WhiteBox
from rollout.policy_client import PolicySettings
from rollout.renderer import Renderer
from rollout.session import FAREWELL, Session, SessionSettings

RULES = TaskRules(protected_paths=("/workspace/.eval/**",), network=("*",))
TASK = Task("t", "d", ({"role": "user", "content": "Solve it."},), rules=RULES)
TOOLS = (
    {
        "name": "bash",
        "description": "runs",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
    },
)
HACK = "cat /workspace/.eval/secret.json"
DUMMY = "cat: /workspace/.eval/secret.json: No such file or directory"


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(str(save_family_tokenizer(tmp_path_factory.mktemp("tokenizer"), QWEN3)))


def bash(*commands: str) -> str:
    return says("", *(call("bash", command=c) for c in commands))


class Shell:
    """A tool environment that says what it was given; `done` ends it with reward 1."""

    tools = TOOLS

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def start(self) -> Sequence[Message]:
        return TASK.messages

    async def act(self, message: Message) -> StepResult:
        calls = message.get("tool_calls") or []
        commands = [c["arguments"]["command"] for c in calls]
        self.ran += commands
        if not calls or "done" in commands:
            return StepResult(done=True, reward=1.0)
        results = [tool_result(f"ran {c['arguments']['command']}", c) for c in calls]
        return StepResult(done=False, messages=tuple(results))

    async def close(self) -> None:
        pass


async def white_box(
    renderer: Renderer,
    script: list[str],
    *,
    max_turns: int = 8,
    env: Shell | None = None,
    log: str = "",
    **settings: Any,
) -> tuple[Trajectory, Shell, RuledEngine]:
    env, left = env or Shell(), list(script)
    engine = RuledEngine(renderer, lambda prompt: left.pop(0))
    mode = WhiteBox(
        lambda task: env,
        PolicySettings(
            generate=engine.generate,
            renderer=renderer,
            sampling={"temperature": 1.0, "max_new_tokens": 4000},
            max_context_tokens=100_000,
            parser=parser_for(renderer, tool_call_parser="qwen25", reasoning_parser="qwen3"),
        ),
        limits=Limits(max_turns=max_turns, attempt_timeout_s=60.0, infra_retries=0),
        call_log_directory=log,
        guard=make_guard(GuardSettings("rules", **settings)),
    )
    return await mode.run(RolloutRequest("a", TASK)), env, engine


def trained(renderer: Renderer, trajectory: Trajectory) -> str:
    return "".join(
        renderer._tokenizer.decode(t.token_ids[t.loss_mask].tolist()) for t in trajectory.traces
    )


async def test_white_box_a_blocked_call_never_reaches_the_environment(renderer: Renderer) -> None:
    script = [bash("ls", HACK), bash(HACK), bash("done")]
    made, env, engine = await white_box(renderer, script)
    assert made.status is Status.COMPLETED
    assert env.ran == ["ls", "done"]
    assert engine.log[1].prompt.results == ["ran ls", DUMMY], "in the order of the calls"
    assert engine.log[2].prompt.results == [DUMMY]
    assert trained(renderer, made).count("secret") == 0
    assert trained(renderer, made).count("done") == 1
    assert made.reward == 1.0
    (trace,) = made.traces
    assert not trace.rollout_logprobs[~trace.loss_mask].any()
    report = made.info["guard"]
    assert (report["blocked"], report["blocked_turns"], report["calls"]) == (2, 2, 4)
    assert {e["turn"] for e in report["events"]} == {0, 1}


async def test_white_box_a_stopped_call_is_worded_by_the_environment_where_it_can(
    renderer: Renderer,
) -> None:
    class Wording(Shell):
        def worded(self, call: Mapping[str, Any], said: str) -> str:
            return f"{said}\n[exit code 1]"

    _, _, engine = await white_box(renderer, [bash(HACK), bash("done")], env=Wording())
    assert engine.log[1].prompt.results == [f"{DUMMY}\n[exit code 1]"]


async def test_masked_turns_are_told_in_the_trajectory_and_in_the_log(
    renderer: Renderer, tmp_path: Path
) -> None:
    script = [bash(HACK), bash("ls"), bash(HACK), bash("done")]
    made, _, engine = await white_box(renderer, script, log=str(tmp_path))
    spans = made.info["guard"]["masked"]
    (trace,) = made.traces
    for (index, first, end), number in zip(spans, (0, 2), strict=True):
        assert index == 0
        assert trace.token_ids[first:end].tolist() == list(engine.log[number].output_ids)
        assert not trace.loss_mask[first:end].any()
    logged = read_calls(tmp_path / "a.calls")
    assert [call.left_out for call in logged] == [True, False, True, False]
    assert [tuple(c.output_ids.tolist()) for c in logged] == [s.output_ids for s in engine.log]


async def test_white_box_train_and_penalise(renderer: Renderer) -> None:
    script = [bash(HACK), bash("done")]
    made, _, engine = await white_box(renderer, script, loss="train")
    assert trained(renderer, made).count("secret") == 1
    assert made.reward == 1.0
    made, _, engine = await white_box(renderer, script, loss="penalise", penalty=0.25)
    assert trained(renderer, made).count("secret") == 1
    assert made.reward == 0.75
    last_of_the_blocked_turn = len(engine.log[0].prompt_ids) + len(engine.log[0].output_ids) - 1
    assert (-0.25, last_of_the_blocked_turn) in [(r.value, r.position) for r in made.rewards]


async def test_white_box_nothing_but_blocked_turns(renderer: Renderer) -> None:
    made, env, _ = await white_box(renderer, [bash(HACK)] * 3, max_turns=3)
    assert made.status is Status.TRUNCATED_TURNS
    assert made.actions == 0
    assert env.ran == []


async def test_white_box_the_last_turn_is_blocked(renderer: Renderer) -> None:
    """What trained before it keeps its place; the trace goes on to the blocked turn as context."""
    made, _, engine = await white_box(renderer, [bash("ls"), bash(HACK)], max_turns=2)
    (trace,) = made.traces
    assert trace.actions == len(engine.log[0].output_ids)


async def test_white_box_end(renderer: Renderer) -> None:
    """The first hack is the last turn, nothing is earned, and with `loss=train` it is the policy's to learn."""
    script = [bash("ls"), bash("ls", HACK), bash("done")]
    made, env, engine = await white_box(renderer, script, action="end", loss="train")
    assert made.status is Status.COMPLETED
    assert made.reward == 0.0
    assert env.ran == ["ls"]
    assert len(engine.log) == 2
    assert trained(renderer, made).count("secret") == 1
    assert made.info["guard"]["ended"]
    made, _, _ = await white_box(renderer, script, action="end")
    assert trained(renderer, made).count("ls") == 1, "with the mask only what came before it"


async def test_white_box_end_takes_what_was_earned_before(renderer: Renderer) -> None:
    class Pays(Shell):
        async def act(self, message: Message) -> StepResult:
            return replace(await super().act(message), reward=0.5)

    made, _, _ = await white_box(renderer, [bash("ls"), bash(HACK)], env=Pays(), action="end")
    assert made.reward == 0.0
    made, _, _ = await white_box(renderer, [bash("ls"), bash("done")], env=Pays(), action="end")
    assert made.reward == 1.0


async def test_white_box_watch(renderer: Renderer) -> None:
    """Everything runs, and is counted."""
    copied = "cp /workspace/.eval/secret.json a && cat a"
    made, env, _ = await white_box(
        renderer, [bash(HACK), bash(copied), bash("done")], action="watch"
    )
    assert env.ran == [HACK, copied, "done"]
    assert made.reward == 1.0
    assert trained(renderer, made).count("secret") == 2
    report = made.info["guard"]
    assert (report["hacks"], report["blocked"], report["blocked_turns"]) == (2, 0, 0)
    assert [(e["hack"], e["blocked"]) for e in report["events"]] == [(True, False)] * 2
    found = guard_metrics([made])
    assert (found["guard/hack_attempts"], found["guard/attempts_with_hack_share"]) == (2.0, 1.0)
    assert found["guard/attempts_with_block_share"] == 0.0


async def test_metrics_of_a_batch(renderer: Renderer) -> None:
    made, _, _ = await white_box(renderer, [bash(HACK), bash(HACK), bash("done")])
    clean, _, _ = await white_box(renderer, [bash("done")])
    unwatched = replace(clean, info={})
    found = guard_metrics([made, clean, unwatched])
    assert found["guard/watched_share"] == pytest.approx(2 / 3)
    assert found["guard/hack_attempts"] == 1.0
    assert found["guard/attempts_with_block_share"] == 0.5
    assert found["guard/repeats"] == 1.0
    assert found["guard/blocked_call_share"] == 0.5
    assert found["guard/reward_after_block"] == 1.0
    assert found["guard/blocked/hidden_eval_read"] == 1.0
    assert guard_metrics([unwatched]) == {}


class Client:
    """An agent program: it runs what it is given, and sends its whole history each time."""

    def __init__(self, renderer: Renderer, script: list[str], **settings_of_guard: Any) -> None:
        self.engine = RuledEngine(renderer, lambda prompt: script.pop(0))
        self.capture = Capture()
        guard = make_guard(GuardSettings("rules", **settings_of_guard))
        self.guarded = Guarded.begin(guard, TASK, self.capture)
        settings = SessionSettings(
            generate=self.engine.generate,
            renderer=renderer,
            sampling={"temperature": 1.0, "max_new_tokens": 4000},
            max_context_tokens=100_000,
            max_calls=50,
            max_output_tokens=100_000,
            parser=parser_for(renderer, tool_call_parser="qwen25", reasoning_parser="qwen3"),
        )
        self.session = Session(settings, self.capture, routing_key="t", guarded=self.guarded)
        self.messages: list[Message] = list(TASK.messages)
        self.ran: list[str] = []

    async def turn(self, *, tools: tuple[dict[str, Any], ...] = TOOLS) -> Message:
        reply = await self.session.chat(ChatRequest(tuple(self.messages), tools))
        self.messages.append(reply.message)
        for asked in reply.message.get("tool_calls") or ():
            self.ran.append(json.dumps(asked["arguments"]))
            result = f"<ran>{asked['arguments']}</ran>"
            if "printf" in str(asked["arguments"]):
                result = f"<returncode>1</returncode>\n{DUMMY}"
            self.messages.append(tool_result(result, asked))
        return reply.message


async def test_gateway_the_client_runs_something_else_and_the_tokens_stay(
    renderer: Renderer,
) -> None:
    client = Client(renderer, [bash(HACK, "ls"), bash("done"), says("finished")])
    served = await client.turn()
    assert "secret" not in json.dumps(served["tool_calls"][0]["arguments"]).replace(DUMMY, "")
    assert served["tool_calls"][1]["arguments"] == {"command": "ls"}
    await client.turn()
    await client.turn()
    assert not any(HACK in command for command in client.ran)
    # The policy reads its own call, and the dummy in the program's own form, on the stored ids.
    second = client.engine.log[1]
    assert HACK in second.prompt.text
    assert "printf" not in second.prompt.text
    assert second.prompt.results == [
        f"<returncode>1</returncode>\n{DUMMY}",
        "<ran>{'command': 'ls'}</ran>",
    ]
    first = client.engine.log[0]
    whole = (*first.prompt_ids, *first.output_ids)
    assert second.prompt_ids[: len(whole)] == whole
    assert client.session.counts.full_renders == 0
    (trace,) = build(client.capture).traces
    own = renderer._tokenizer.decode(trace.token_ids[trace.loss_mask].tolist())
    assert "secret" not in own
    assert "done" in own
    assert "finished" in own


async def test_gateway_a_history_that_is_rendered_anew_has_the_policys_own_call(
    renderer: Renderer,
) -> None:
    client = Client(renderer, [bash(HACK), says("finished")])
    await client.turn()
    client.messages[0] = {"role": "user", "content": "Another beginning."}
    await client.turn()
    assert client.session.counts.full_renders == 1
    assert HACK in client.engine.log[1].prompt.text
    assert "printf" not in client.engine.log[1].prompt.text


async def test_gateway_results_that_name_the_substitute_are_put_right(renderer: Renderer) -> None:
    tools = (
        {
            "name": "Read",
            "description": "",
            "parameters": {"type": "object", "properties": {"file_path": {"type": "string"}}},
        },
    )
    asked = says("", call("Read", file_path="/workspace/.eval/a"))
    client = Client(renderer, [asked, says("finished")])
    served = await client.turn(tools=tools)
    (moved,) = served["tool_calls"]
    assert moved["arguments"] == {"file_path": "/proc/0/workspace/.eval/a"}
    client.messages[-1] = tool_result(
        "ENOENT: no such file, open '/proc/0/workspace/.eval/a'", moved
    )
    await client.turn(tools=tools)
    assert client.engine.log[1].prompt.results == [
        "ENOENT: no such file, open '/workspace/.eval/a'"
    ]


async def test_gateway_end(renderer: Renderer) -> None:
    """The client gets a farewell in place of the hack; later requests are refused."""
    client = Client(renderer, [bash("ls"), bash(HACK)], action="end", loss="train")
    await client.turn()
    last = await client.turn()
    assert last == {"role": "assistant", "content": FAREWELL}
    assert client.session.end_reason is Status.COMPLETED
    assert client.guarded is not None
    assert client.guarded.forfeited
    with pytest.raises(AttemptOver):
        await client.turn()
    (trace,) = build(client.capture).traces
    own = renderer._tokenizer.decode(trace.token_ids[trace.loss_mask].tolist())
    assert own.count("secret") == 1


def test_prompts_are_read_as_the_template_writes_them() -> None:
    assert Prompt("<|im_start|>user\nhi<|im_end|>").users == "hi"
