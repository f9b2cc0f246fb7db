"""Tools and sub-agents in the framework's own loop: who sees what, what trains, how traces are linked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from chat_templates import WITH_TOOLS, save_tokenizer
from scripted_engine import END, JsonCalls, ScriptedEngine, call

from rlframe.errors import InfraFault
from rlframe.interfaces import RolloutRequest, StepResult
from rlframe.types import LinkKind, Message, Status, Task, Trajectory
from rollout.chat import tool_result
from rollout.compaction import CompactionPolicy
from rollout.modes.white_box import Limits, WhiteBox
from rollout.policy_client import PolicySettings
from rollout.renderer import Renderer
from rollout.sub_agents import SubAgentPolicy

TASK = Task("train/1", "sums", ({"role": "user", "content": "2+2?"},))
ADD = {"name": "add", "description": "", "parameters": {}}
AGENTS = SubAgentPolicy(max_agents=4, max_depth=2, max_turns=3, system_prompt="A sub-agent.")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), WITH_TOOLS)))


@dataclass
class Calculator:
    """Answers `add`; done when the policy says something without a call."""

    task: str = "2+2?"
    closed: list[str] = field(default_factory=list)
    tools: Sequence[Any] = (ADD,)

    async def start(self) -> Sequence[Message]:
        return ({"role": "user", "content": self.task},)

    async def act(self, message: Message) -> StepResult:
        calls = message.get("tool_calls") or ()
        if not calls:
            return StepResult(done=True, reward=float("4" in message["content"]))
        sums = [tool_result(str(c["arguments"]["a"] + c["arguments"]["b"]), c) for c in calls]
        return StepResult(done=False, messages=tuple(sums))

    async def close(self) -> None:
        self.closed.append(self.task)

    def sub_env(self, task: str) -> Calculator:
        return Calculator(task, self.closed)


class Run:
    def __init__(self, renderer: Renderer, env: Any = None, **settings: Any) -> None:
        self.engine = ScriptedEngine(renderer)
        self.env = env or Calculator()
        self.renderer = renderer
        self.sub_agents = settings.pop("sub_agents", AGENTS)
        self.mode = WhiteBox(
            lambda task: self.env,
            PolicySettings(
                generate=self.engine.generate,
                renderer=renderer,
                sampling={"temperature": 1.0, "max_new_tokens": 500},
                max_context_tokens=4000,
                parser=JsonCalls(),
                **settings,
            ),
            limits=Limits(max_turns=6, attempt_timeout_s=30.0, infra_retries=0),
            sub_agents=self.sub_agents,
        )

    async def attempt(self) -> Trajectory:
        return await self.mode.run(RolloutRequest("train/1", TASK))

    def trained(self, made: Trajectory) -> list[str]:
        decode = self.renderer._tokenizer.decode
        return [decode(t.token_ids[t.loss_mask].tolist()) for t in made.traces]


async def test_tools_stand_in_the_prompt_and_results_come_back(renderer: Renderer) -> None:
    run = Run(renderer, sub_agents=SubAgentPolicy())
    run.engine.say(call("add", a=1, b=1) + call("add", a=2, b=2) + END, "It is 4." + END)
    made = await run.attempt()
    assert made.status is Status.COMPLETED
    assert made.reward == 1.0
    assert '"name": "add"' in run.engine.prompt(0)
    assert "spawn_agent" not in run.engine.prompt(0)
    assert run.engine.prompt(1).endswith(
        "tool\n2<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(made.traces) == 1
    assert run.env.closed == ["2+2?"]


async def test_two_sub_agents_at_once_join_their_parent(renderer: Renderer) -> None:
    run = Run(renderer)
    both = call("spawn_agent", task="one") + call("spawn_agent", task="two") + END
    run.engine.say(both, "first" + END, "second" + END, "So 4." + END)
    made = await run.attempt()
    assert made.status is Status.COMPLETED
    assert run.trained(made) == [both + "So 4." + END, "first" + END, "second" + END]
    decode = renderer._tokenizer.decode
    for child, link in enumerate(made.links, start=1):
        assert (link.kind, link.child, link.parent) == (LinkKind.SPAWNED_BY, child, 0)
        ids = made.traces[0].token_ids.tolist()
        assert decode(ids[: link.call_position + 1]).endswith(both)
        assert decode(ids[link.join_position :]) == "So 4." + END
    asked = decode(made.traces[1].token_ids.tolist())
    assert "<|im_start|>system\nA sub-agent.<|im_end|>\n<|im_start|>user\none<|im_end|>" in asked
    assert '"name": "add"' in asked
    assert "tool\nfirst<|im_end|>\n<|im_start|>tool\nsecond<|im_end|>" in run.engine.prompt(3)
    assert [agent["report"] for agent in made.info["agents"]] == ["first", "second"]
    assert sorted(run.env.closed) == ["2+2?", "one", "two"]


async def test_a_sub_agent_of_a_sub_agent(renderer: Renderer) -> None:
    run = Run(renderer)
    run.engine.say(
        call("spawn_agent", task="outer") + END,
        call("spawn_agent", task="inner") + END,
        "deep" + END,
        "middle" + END,
        "So 4." + END,
    )
    made = await run.attempt()
    assert [(link.child, link.parent) for link in made.links] == [(1, 0), (2, 1)]
    assert run.trained(made)[2] == "deep" + END
    assert "spawn_agent" not in run.engine.prompt(2)  # max_depth=2: it can spawn none


async def test_a_fork_sees_the_whole_conversation_and_shares_its_tokens(renderer: Renderer) -> None:
    run = Run(renderer)
    asked = call("spawn_agent", task="go on", context="fork") + END
    run.engine.say(asked, "forked" + END, "So 4." + END)
    made = await run.attempt()
    assert run.trained(made) == [asked + "So 4." + END, "forked" + END]
    parent, child = (t.token_ids.tolist() for t in made.traces)
    shared = made.links[0].call_position + 1
    assert child[:shared] == parent[:shared]


async def test_agents_beyond_the_limit_and_other_calls_are_answered(renderer: Renderer) -> None:
    run = Run(renderer, sub_agents=SubAgentPolicy(max_agents=1))
    asked = (
        call("spawn_agent", task="one")
        + call("spawn_agent", task="two")
        + call("add", a=1, b=1)
        + END
    )
    run.engine.say(asked, "first" + END, "So 4." + END)
    made = await run.attempt()
    assert made.status is Status.COMPLETED
    last = run.engine.prompt(2)
    assert "tool\nfirst<" in last
    assert "Refused: no more sub-agents." in last
    assert "Not done: call other tools" in last


async def test_a_sub_agent_out_of_turns_reports_what_it_said_last(renderer: Renderer) -> None:
    run = Run(renderer)
    run.engine.say(
        call("spawn_agent", task="loop") + END,
        *[f"try {n}" + call("add", a=n, b=0) + END for n in range(3)],
        "So 4." + END,
    )
    made = await run.attempt()
    assert made.status is Status.COMPLETED
    assert "The sub-agent ran out of turns. Its last message: try 2" in run.engine.prompt(4)


async def test_a_lost_engine_call_in_a_sub_agent_is_the_attempts_fault_of_infra(
    renderer: Renderer,
) -> None:
    run = Run(renderer)
    both = call("spawn_agent", task="one") + call("spawn_agent", task="two") + END
    run.engine.say(both, InfraFault("gone"), "second" + END)
    made = await run.attempt()
    assert made.status is Status.INFRA_ERROR
    assert sorted(run.env.closed) == ["2+2?", "one", "two"]


async def test_a_sub_agents_own_rewards_are_put_on_its_own_tokens(renderer: Renderer) -> None:
    run = Run(renderer)
    run.engine.say(call("spawn_agent", task="2+2?") + END, "4" + END, "So 4." + END)
    made = await run.attempt()
    assert [(r.value, r.trace) for r in made.rewards] == [(1.0, 1), (1.0, 0)]


async def test_compaction_and_sub_agents_together(renderer: Renderer) -> None:
    run = Run(renderer, compaction=CompactionPolicy(every_turns=2, keep_turns=1))
    run.engine.say(
        call("add", a=1, b=1) + END,
        call("spawn_agent", task="one") + END,
        "first" + END,
        "a summary" + END,
        "So 4." + END,
    )
    made = await run.attempt()
    assert made.status is Status.COMPLETED
    kinds = {(link.child, link.parent): link for link in made.links}
    assert kinds[1, 0].kind is LinkKind.CONTINUES
    spawned = kinds[2, 0]
    # The report came after the compaction: the parent's chain goes on after its first trace.
    assert spawned.join_position == len(made.traces[0])
    assert made.info["compactions"] == 1


async def test_the_policy_compacts_when_it_wants_to(renderer: Renderer) -> None:
    settings = CompactionPolicy(by_tool=True, keep_turns=1, instruction="Sum up.")
    run = Run(renderer, compaction=settings, sub_agents=SubAgentPolicy())
    run.engine.say(
        call("add", a=1, b=1) + END,
        call("compact_context") + call("add", a=5, b=5) + END,
        "1 + 1 = 2" + END,
        "So 4." + END,
    )
    made = await run.attempt()
    assert made.status is Status.COMPLETED
    assert made.reward == 1.0
    assert made.info["compactions"] == 1
    assert '"name": "compact_context"' in run.engine.prompt(0)
    first, second = (renderer._tokenizer.decode(t.token_ids.tolist()) for t in made.traces)
    assert first.endswith("Sum up.<|im_end|>\n<|im_start|>assistant\n1 + 1 = 2" + END)
    assert "summarised:\n\n1 + 1 = 2" in second
    assert "The context was compacted. Go on." in second
    assert "Not done: call other tools in a turn without compact_context." in second
    assert [(link.kind, link.parent, link.child) for link in made.links] == [
        (LinkKind.CONTINUES, 0, 1)
    ]
    assert "".join(run.trained(made)).count("compact_context") == 1, "kept, and not trained twice"


async def test_without_the_option_the_tools_name_is_nobodys(renderer: Renderer) -> None:
    run = Run(renderer, sub_agents=SubAgentPolicy())
    run.engine.say("Four" + call("add", a=1, b=1) + END, "<tool_call>{ It is 4." + END)
    made = await run.attempt()
    assert "compact_context" not in run.engine.prompt(0)
    assert made.info["malformed_calls"] == 1
    assert made.info["env_seconds"] >= 0.0
    assert made.info["tries"] == 1
