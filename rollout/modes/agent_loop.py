"""The loop between a policy and its environment, and the loops of the sub-agents that it spawns."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rlframe.errors import PolicyFault, RolloutError, TaskFault, describe
from rlframe.interfaces import Env, SpawningEnv, StepResult, ToolEnv, WordingEnv
from rlframe.types import Message, Status
from rollout.capture.capture import Capture
from rollout.chat import tool_result
from rollout.compaction import DONE, TOOL
from rollout.guarded import ENDED, Guarded
from rollout.policy_client import ChatTurn, ContextFull, PolicyClient
from rollout.sub_agents import SPAWN, AnswerOnce, Spawn, SubAgentPolicy, spawns

T = TypeVar("T")


@dataclass(slots=True)
class Attempt:
    """What has happened so far in one attempt."""

    capture: Capture
    guarded: Guarded | None = None
    """The guard that sees every tool call first, where the task has rules."""
    rewards: list[tuple[float, int]] = field(default_factory=list)
    """Values, and the calls that earned them."""
    conversation: list[Message] = field(default_factory=list)
    """The main agent's, for people."""
    agents: list[dict[str, Any]] = field(default_factory=list)
    """Of every sub-agent: thread, task, report."""
    turns: int = 0
    compactions: int = 0
    malformed_calls: int = 0
    """Places in answers that looked like a tool call and could not be read as one."""
    env_seconds: float = 0.0
    """Spent in the environment's steps, tools and all; sub-agents' at the same time count each."""
    finish_reasons: list[str] = field(default_factory=list)
    env_info: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class AgentLoop:
    """All agents of one attempt.

    loop = AgentLoop(attempt, sub_agents)
    status = await loop.run(env, policy, await env.start(), max_turns=8)
    """

    def __init__(self, attempt: Attempt, sub_agents: SubAgentPolicy) -> None:
        self._attempt, self._sub_agents = attempt, sub_agents
        self._spawned = 0

    async def run(
        self,
        env: Env | ToolEnv,
        policy: PolicyClient,
        opening: Sequence[Message],
        *,
        max_turns: int,
        depth: int = 0,
    ) -> Status:
        """One agent's turns. Raises ContextFull, TaskFault and InfraFault as they come."""
        messages = list(opening)
        children: list[PolicyClient] = []
        for _ in range(max_turns):
            answer = await policy.chat(messages)
            self._note(messages, answer, depth)
            policy.join(children, answer)
            children = []
            asked = spawns(answer.message) if self._sub_agents.tools(depth) else []
            if asked:
                messages, children = await self._delegate(env, policy, answer, asked, depth)
                continue
            if policy.compaction.asked(answer.message):
                policy.compact_next()
                calls = answer.message["tool_calls"]
                done = {call["id"]: DONE for call in calls if call["name"] == TOOL}
                messages = _answers(answer, done, apart_from=TOOL)
                continue
            result = await self._step(env, answer, depth)
            if result.done:
                return Status.COMPLETED
            messages = list(result.messages)
        return Status.TRUNCATED_TURNS

    async def _step(self, env: Env | ToolEnv, answer: ChatTurn, depth: int) -> StepResult:
        began = time.monotonic()
        try:
            if isinstance(env, ToolEnv):
                result = await self._act(env, answer)
            else:
                result = _checked(await outside(env.step(answer.text)))
        finally:
            self._attempt.env_seconds += time.monotonic() - began
        if depth == 0:
            self._attempt.env_info = result.info
        if result.reward:
            self._attempt.rewards.append((result.reward, answer.call))
        return result

    async def _act(self, env: ToolEnv, answer: ChatTurn) -> StepResult:
        """The environment gets the calls that the guard lets through; the others read what a tool says
        that finds nothing. A turn whose calls are all stopped never reaches it. Raises PolicyFault where a
        stopped call ends the attempt."""
        guarded, message = self._attempt.guarded, answer.message
        stopped = await guarded.stopped(message, answer.call) if guarded is not None else {}
        if not stopped:
            return _checked(await outside(env.act(message)))
        if guarded is not None and guarded.ended:
            raise PolicyFault(ENDED)
        calls = message["tool_calls"]
        results = {
            c["id"]: tool_result(_worded(env, c, stopped[c["id"]].result), c)
            for c in calls
            if c["id"] in stopped
        }
        allowed = [c for c in calls if c["id"] not in stopped]
        if not allowed:
            return StepResult(done=False, messages=tuple(results.values()))
        result = _checked(await outside(env.act({**message, "tool_calls": allowed})))
        return replace(result, messages=_merged(calls, results, result.messages))

    async def _delegate(
        self,
        env: Env | ToolEnv,
        policy: PolicyClient,
        answer: ChatTurn,
        asked: list[Spawn],
        depth: int,
    ) -> tuple[list[Message], list[PolicyClient]]:
        """Runs the sub-agents at the same time; their reports, in the order of the calls."""
        allowed = asked[: max(self._sub_agents.max_agents - self._spawned, 0)]
        self._spawned += len(allowed)
        done = await _together(
            [
                self._child(env, policy, spawn, f"{policy.thread}.{answer.call}.{number}", depth)
                for number, spawn in enumerate(allowed)
            ]
        )
        reports = {
            spawn.call["id"]: report for spawn, (report, _) in zip(allowed, done, strict=True)
        }
        refused = {spawn.call["id"]: "Refused: no more sub-agents." for spawn in asked}
        messages = _answers(answer, {**refused, **reports}, apart_from=SPAWN)
        return messages, [child for _, child in done]

    async def _child(
        self, env: Env | ToolEnv, parent: PolicyClient, spawn: Spawn, name: str, depth: int
    ) -> tuple[str, PolicyClient]:
        """The sub-agent's last message, or why there is none."""
        own = await outside(_sub_env(env, spawn.task))
        try:
            tools = own.tools if isinstance(own, ToolEnv) else ()
            child = parent.spawn(
                name,
                tools=(*tools, *parent.compaction.tools, *self._sub_agents.tools(depth + 1)),
                fork=spawn.fork,
                spawned_by=parent.last_call,
            )
            opening = await self._opening(own, spawn)
            report = await self._report(own, child, opening, depth)
        finally:
            with suppress(Exception):
                await own.close()
        self._attempt.agents.append({"thread": name, "task": spawn.task, "report": report})
        return report, child

    async def _opening(self, env: Env | ToolEnv, spawn: Spawn) -> list[Message]:
        given = list(await outside(env.start()))
        if spawn.fork:
            return [tool_result(f"{self._sub_agents.system_prompt}\n\n{spawn.task}", spawn.call)]
        return [{"role": "system", "content": self._sub_agents.system_prompt}, *given]

    async def _report(
        self, env: Env | ToolEnv, child: PolicyClient, opening: list[Message], depth: int
    ) -> str:
        try:
            status = await self.run(
                env, child, opening, max_turns=self._sub_agents.max_turns, depth=depth + 1
            )
        except ContextFull:
            return f"The sub-agent's context is full. Its last message: {child.last_text}"
        if status is Status.TRUNCATED_TURNS:
            return f"The sub-agent ran out of turns. Its last message: {child.last_text}"
        return child.last_text

    def _note(self, messages: Sequence[Message], answer: ChatTurn, depth: int) -> None:
        attempt = self._attempt
        attempt.turns += 1
        attempt.malformed_calls += len(answer.malformed)
        attempt.finish_reasons.append(answer.turn.finish_reason)
        if depth == 0:
            attempt.conversation += messages
            attempt.conversation.append({"role": "assistant", "content": answer.text})


def _answers(answer: ChatTurn, known: Mapping[str, str], *, apart_from: str) -> list[Message]:
    """The results of a turn's calls, by call id; calls of other tools were not done."""
    apart = f"Not done: call other tools in a turn without {apart_from}."
    calls = answer.message["tool_calls"]
    return [tool_result(known.get(call["id"], apart), call) for call in calls]


def _worded(env: ToolEnv, call: Mapping[str, Any], said: str) -> str:
    return env.worded(call, said) if isinstance(env, WordingEnv) else said


def _merged(
    calls: Sequence[Mapping[str, Any]], own: Mapping[str, Message], given: Sequence[Message]
) -> tuple[Message, ...]:
    """Results in the order of the calls, then whatever else the environment says."""
    results = {str(m.get("tool_call_id")): m for m in given if m["role"] == "tool"}
    results |= own
    ordered = [results.pop(call["id"]) for call in calls if call["id"] in results]
    return (*ordered, *(m for m in given if m not in ordered))


async def _together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure cancels the others, and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sub_env(env: Env | ToolEnv, task: str) -> Env | ToolEnv:
    return env.sub_env(task) if isinstance(env, SpawningEnv) else AnswerOnce(task)


async def outside(call: Awaitable[T]) -> T:
    """Code of the environment: what it raises is the task's fault, if it does not say itself whose."""
    try:
        return await call
    except RolloutError:
        raise
    except Exception as error:
        raise TaskFault(describe(error)) from error


def _checked(result: Any) -> StepResult:
    if not isinstance(result, StepResult):
        raise TaskFault(f"the environment's step() returned {result!r:.80}, which is no StepResult")
    if not math.isfinite(result.reward):
        raise TaskFault(f"the environment's reward is {result.reward}")
    if not result.done and not result.messages:
        raise TaskFault("the environment's step() is not done, but has no messages to go on with")
    return result
