"""White-box mode: the framework drives the loop between the policy and the environment.

An attempt never raises: whatever goes wrong becomes its status, by whose fault it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlframe.errors import InfraFault, PolicyFault, TaskFault, describe
from rlframe.interfaces import AnyEnv, Env, Guard, RolloutRequest, ToolEnv, WorkspaceEnv
from rlframe.types import Status, Task, Trajectory
from rollout.capture.build import build
from rollout.guarded import Guarded
from rollout.modes.agent_loop import AgentLoop, Attempt, outside
from rollout.modes.attempts import Tried, placed, trajectory_of, with_retries
from rollout.policy_client import ContextFull, PolicyClient, PolicySettings
from rollout.sub_agents import SubAgentPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an attempt."""

    max_turns: int
    attempt_timeout_s: float
    infra_retries: int


class WhiteBox:
    """Runs attempts; shared by all attempts of a worker."""

    def __init__(
        self,
        make_env: Callable[[Task], AnyEnv],
        settings: PolicySettings,
        *,
        limits: Limits,
        sub_agents: SubAgentPolicy = SubAgentPolicy(),  # noqa: B008 - frozen
        call_log_directory: str = "",
        guard: Guard | None = None,
    ) -> None:
        self._make_env, self._settings, self._limits = make_env, settings, limits
        self._sub_agents, self._call_log_directory = sub_agents, call_log_directory
        self._guard = guard

    async def run(self, request: RolloutRequest) -> Trajectory:
        """One attempt; made again, from nothing, where our side lost it."""
        tried = await with_retries(
            Attempt,
            lambda attempt: self._try(request, attempt),
            attempt_id=request.id,
            infra_retries=self._limits.infra_retries,
            call_log_directory=self._call_log_directory,
        )
        return _trajectory(request, tried)

    async def _try(self, request: RolloutRequest, attempt: Attempt) -> Status:
        try:
            async with asyncio.timeout(self._limits.attempt_timeout_s):
                return await self._drive(request, attempt)
        except TimeoutError:
            return Status.TRUNCATED_TIME
        except ContextFull:
            return Status.TRUNCATED_LENGTH
        except PolicyFault as error:
            attempt.error = str(error)
            return Status.COMPLETED
        except InfraFault as error:
            attempt.error = str(error)
            return Status.INFRA_ERROR
        except TaskFault as error:
            attempt.error = str(error)
            return Status.FAILED

    async def _drive(self, request: RolloutRequest, attempt: Attempt) -> Status:
        settings = replace(self._settings, sampling={**self._settings.sampling, **request.sampling})
        env = await outside(_made(self._make_env, request.task))
        tools = env.tools if isinstance(env, ToolEnv) else ()
        policy = PolicyClient(
            settings,
            attempt.capture,
            routing_key=request.id,
            tools=(*tools, *settings.compaction.tools, *self._sub_agents.tools(0)),
        )
        try:
            attempt.guarded = Guarded.begin(self._guard, request.task, attempt.capture)
            opening = await outside(env.start())
            loop = AgentLoop(attempt, self._sub_agents)
            return await loop.run(env, policy, opening, max_turns=self._limits.max_turns)
        finally:
            attempt.compactions = policy.compactions
            try:
                await env.close()
            except Exception as error:  # noqa: BLE001 - outside code; the attempt is over already
                attempt.error = attempt.error or f"close: {describe(error)}"


async def _made(make_env: Callable[[Task], AnyEnv], task: Task) -> Env | ToolEnv:
    env = make_env(task)
    if isinstance(env, WorkspaceEnv):
        raise TaskFault(f"{type(env).__name__} is for agent programs: use rollout.mode=black_box")
    return env


def _trajectory(request: RolloutRequest, tried: Tried[Attempt]) -> Trajectory:
    attempt = tried.attempt
    said = attempt.conversation
    info: dict[str, Any] = {
        "turns": attempt.turns,
        "env_seconds": round(attempt.env_seconds, 4),
        "finish_reasons": attempt.finish_reasons,
        "messages": said,
        "prompt": next((m["content"] for m in said if m["role"] == "user"), ""),
        "response": next((m["content"] for m in reversed(said) if m["role"] == "assistant"), ""),
    }
    if attempt.compactions:
        info["compactions"] = attempt.compactions
    if attempt.malformed_calls:
        info["malformed_calls"] = attempt.malformed_calls
    if attempt.agents:
        info["agents"] = attempt.agents
    built = build(attempt.capture)
    earned = attempt.rewards
    if attempt.guarded is not None:
        info["guard"] = attempt.guarded.report(built)
        kept = [] if attempt.guarded.forfeited else earned
        earned = [*kept, *attempt.guarded.penalties()]
    return trajectory_of(
        request,
        tried,
        built,
        rewards=[placed(value, call, built) for value, call in earned],
        info=info,
        env_info=attempt.env_info,
        error=attempt.error,
    )
