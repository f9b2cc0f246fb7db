"""Five programs spawn sub-agents: threads of their own, hung on the turn that spawned them, all training."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from agent_runs import SHELLS, Ran, Runs, check_exact
from scripted_policy import Meeting, Prompt, call, says

from rlframe.types import LinkKind, Status
from rollout.capture.call import CallKind
from rollout.harness.program import find_program

pytestmark = pytest.mark.slow

EDIT = "printf mended > answer.txt; echo edited"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs.make(tmp_path_factory.mktemp("agents"))


def subtask(prompt: Prompt) -> str:
    """Which one the asker was given; empty: it is the main agent."""
    given = [
        t for role, t in prompt.messages if role == "user" and t.rstrip().endswith(tuple("123"))
    ]
    found = re.findall(r"SUBTASK (\d)$", given[-1].rstrip()) if given else []
    return found[-1] if found else ""


class Delegates:
    """The main agent spawns two at once, hears of both, then edits; a sub-agent looks and reports."""

    def __init__(
        self,
        name: str,
        spawn: Sequence[Mapping[str, Any]],
        *,
        nested: Mapping[str, Mapping[str, Any]] | None = None,
        wait: Callable[[Prompt], str] | None = None,
    ) -> None:
        self.name, self.spawn, self.nested, self.wait = name, spawn, nested or {}, wait

    def __call__(self, prompt: Prompt) -> str:
        shell = SHELLS[self.name]
        if "title generator" in prompt.system:
            return says("A title")
        if number := subtask(prompt):
            return self._work(prompt, number)
        if prompt.answers == (self.name == "qwen_code"):  # one that it has invented
            return says("Two of you, please.", *self.spawn)
        if "edited" in prompt.last:
            return says("It is done.")
        if self.wait is not None and not all(f"FOUND {n}" in prompt.text for n in "12"):
            return self.wait(prompt)
        return says("", shell(EDIT))

    def _work(self, prompt: Prompt, number: str) -> str:
        if "FOUND" in prompt.last or "answer.txt" in prompt.last:
            return says(f"FOUND {number}")
        if number in self.nested:
            return says("", self.nested[number])
        return says("", SHELLS[self.name]("ls"))


def both() -> Meeting:
    """The first call of the first and of the second sub-agent."""
    return Meeting(
        lambda p: (
            subtask(p) in ("1", "2") and "SUBTASK" in p.last and "<tool_response>" not in p.last
        ),
        asyncio.Barrier(2),
    )


def check(ran: Ran, *, threads: int) -> None:
    assert ran.trajectory.status is Status.COMPLETED, ran.said()
    assert [r.value for r in ran.trajectory.rewards] == [1.0], ran.said()
    check_exact(ran)
    working = {c.thread for c in ran.calls if c.kind is CallKind.TURN}
    assert len(working) == threads, ran.said()
    assert len(ran.trajectory.traces) == threads, "one trace a thread"
    for thread in working:
        calls = [c for c in ran.calls if c.thread == thread]
        assert all(c.bridged for c in calls[1:]), f"{thread} only appends"
    links = ran.trajectory.links
    assert [link.kind for link in links] == [LinkKind.SPAWNED_BY] * (threads - 1)
    assert [link.child for link in links] == list(range(1, threads))
    assert all(link.call_position is not None for link in links)
    assert all(link.join_position is not None for link in links), "somebody read what they found"


async def test_claude_code_two_at_once_and_one_below(runs: Runs) -> None:
    def agent(number: int, kind: str) -> dict[str, Any]:
        return call("Agent", description="look", prompt=f"SUBTASK {number}", subagent_type=kind)

    rule = Delegates(
        "claude_code",
        [agent(1, "general-purpose"), agent(2, "Explore")],
        nested={"1": agent(3, "general-purpose")},
    )
    ran = await runs.run(find_program("claude_code"), rule, meeting=both())
    check(ran, threads=4)
    first = ran.calls[0]
    spawned = {(link.child, link.parent): link for link in ran.trajectory.links}
    parents = sorted(parent for _, parent in spawned)
    assert parents.count(0) == 2, "two by the main agent"
    assert len(set(parents)) == 2, "one by a sub-agent"
    for (_, parent), link in spawned.items():
        if parent == 0:
            assert link.call_position == first.tokens - 1


async def test_opencode_two_at_once(runs: Runs) -> None:
    def agent(number: int, kind: str) -> dict[str, Any]:
        return call("task", description="look", prompt=f"SUBTASK {number}", subagent_type=kind)

    rule = Delegates("opencode", [agent(1, "general"), agent(2, "explore")])
    ran = await runs.run(find_program("opencode"), rule, meeting=both())
    check(ran, threads=3)
    assert {link.parent for link in ran.trajectory.links} == {0}


async def test_qwen_code_two_that_begin_alike(runs: Runs) -> None:
    """Its requests say nothing of agents: these two, one after the other, differ in
    their tasks only."""
    spawn = [
        call("agent", description="look", prompt=f"SUBTASK {n}", subagent_type="general-purpose")
        for n in (1, 2)
    ]
    ran = await runs.run(find_program("qwen_code"), Delegates("qwen_code", spawn))
    check(ran, threads=3)
    assert {link.parent for link in ran.trajectory.links} == {0}


async def test_codex_goes_on_beside_its_sub_agents(runs: Runs) -> None:
    """Spawning returns at once; the second one gets the parent's context."""

    def agent(number: int, *, fork: bool) -> dict[str, Any]:
        return call("multi_agent_v1__spawn_agent", message=f"SUBTASK {number}", fork_context=fork)

    def wait(prompt: Prompt) -> str:
        agents = re.findall(r'"agent_id": ?"([^"]+)"', prompt.text)
        silent = [a for a in agents if f'{a}":{{"completed"' not in prompt.text]
        return says("", call("multi_agent_v1__wait_agent", targets=silent, timeout_ms=30_000))

    rule = Delegates("codex", [agent(1, fork=False), agent(2, fork=True)], wait=wait)
    ran = await runs.run(find_program("codex"), rule, meeting=both())
    check(ran, threads=3)
    assert {link.parent for link in ran.trajectory.links} == {0}


ORCHESTRA = '''
import asyncio, os, subprocess, sys
from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)


@function_tool
def shell(command: str) -> str:
    """Run a shell command and return what it prints."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    return done.stdout + done.stderr


async def main() -> None:
    model = OpenAIResponsesModel(model=os.environ["RLFRAME_MODEL"], openai_client=AsyncOpenAI())
    scout = Agent(name="scout", instructions="You look.", model=model, tools=[shell])
    look = scout.as_tool(tool_name="look", tool_description="Lets a scout look at something.")
    lead = Agent(name="lead", instructions="You decide.", model=model, tools=[shell, look])
    print((await Runner.run(lead, sys.argv[1])).final_output)


asyncio.run(main())
'''


async def test_openai_agents_as_tools_over_responses(runs: Runs) -> None:
    """A user's own script for the library: agents as another agent's tools, over the responses API."""
    program = replace(
        find_program("openai_agents"), files=lambda endpoint: {"agent.py": ORCHESTRA.lstrip()}
    )
    spawn = [call("look", input=f"SUBTASK {number}") for number in (1, 2)]
    ran = await runs.run(program, Delegates("openai_agents", spawn), meeting=both())
    check(ran, threads=3)
    assert {link.parent for link in ran.trajectory.links} == {0}
