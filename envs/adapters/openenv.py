"""`env.name=openenv`: an environment behind an OpenEnv server, unchanged.

    rlframe train env.name=openenv env.args.url=http://127.0.0.1:8000

The action's schema, which the server tells, decides how the policy acts:
- one text to be filled in (or the one that `env.args.fill` names): the policy's answer is that text;
- tools of an `MCPEnvironment`: the policy calls them, and a turn without a call ends the attempt;
- anything else: one tool, `step`, with the schema's fields as its arguments.

A task is a seed for `reset`. A reward of a step is the turn's. What an episode must have given by its end, where the
environment itself ends it, is a finite reward. The server runs wherever you started it; an attempt is a session.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import options
from envs.adapters.openenv_client import BadActionError, Seen, Session, action_schema, connect
from envs.tools.tool import cut
from envs.tools.tool_env import finite_reward
from rlframe.errors import TaskFault, UserError, nearest
from rlframe.interfaces import AnyEnv, Score, StepResult
from rlframe.types import Demonstration, Message, Task

STEP = "step"
LIST_TOOLS = {"type": "list_tools"}


@dataclass(frozen=True)
class OpenEnvOptions:
    """`env.args` of `env.name=openenv`."""

    url: str
    fill: str = ""
    """The action's field that the policy's text fills; empty: as the schema has it."""
    reset: dict[str, Any] = field(default_factory=dict)
    """Arguments of `reset` besides the seed."""
    system: str = ""
    domain: str = "openenv"
    call_timeout_s: float = 60.0
    max_result_chars: int = 16_000


@dataclass(frozen=True, slots=True)
class Acting:
    """How the policy acts. `fill`: by a text; otherwise by `tools`, the environment's own or one."""

    fill: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    own_tools: bool = False


class OpenEnvSource:
    """Satisfies `rlframe.interfaces.TaskSource`: a task is a seed. Held-out seeds have a range of their own."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(OpenEnvOptions, given)
        options.require(
            self._options.url.startswith(("http://", "https://")), "env.args.url", self._options.url,
            "http://HOST:PORT",
        )  # fmt: skip
        self._seed, self._held_out = seed, held_out
        self._acting: Acting | None = None

    def train_task(self, index: int) -> Task:
        return self._task(f"train/{index}", (1 << 20) + index)

    def held_out_tasks(self) -> Sequence[Task]:
        return [self._task(f"held_out/{number}", number) for number in range(self._held_out)]

    def make(self, task: Task) -> AnyEnv:
        """Asks the server what an action is, at the first call."""
        if self._acting is None:
            with concurrent.futures.ThreadPoolExecutor(1) as thread:  # a loop may run in this one
                self._acting = thread.submit(asyncio.run, acting(self._options)).result()
        if self._acting.fill:
            return OpenEnvText(task, self._options, self._acting)
        return OpenEnvTools(task, self._options, self._acting, tools=self._acting.tools)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=openenv: has no demonstrations for supervised fine-tuning")

    def _task(self, name: str, number: int) -> Task:
        seed = (self._seed * 1_000_003 + number) % (1 << 31)
        return Task(name, self._options.domain, (), {"seed": seed}, seed=seed)


async def acting(chosen: OpenEnvOptions) -> Acting:
    schema = await action_schema(chosen.url, timeout_s=chosen.call_timeout_s)
    given = schema.get("properties")
    fields = {k: v for k, v in (given or {}).items() if k not in ("metadata", "type")}
    if chosen.fill:
        if chosen.fill not in fields:
            raise UserError(
                f"env.args.fill={chosen.fill}: the action has no such field."
                f"{nearest(chosen.fill, fields)}"
            )
        return Acting(chosen.fill)
    if not fields or set(fields) == {"tool_name", "arguments"}:
        return Acting(tools=await _own_tools(chosen), own_tools=True)
    texts = [name for name, about in fields.items() if about.get("type") == "string"]
    required = [name for name in schema.get("required", ()) if name in fields]
    if len(texts) == 1 and required in ([], texts):
        return Acting(texts[0])
    shown = {**schema, "properties": fields, "required": required}
    about = str(schema.get("description") or "Act in the environment.")
    return Acting(tools=({"name": STEP, "description": about, "parameters": shown},))


async def _own_tools(chosen: OpenEnvOptions) -> tuple[Mapping[str, Any], ...]:
    session = await connect(chosen.url, timeout_s=chosen.call_timeout_s)
    try:
        tools = (await session.step(LIST_TOOLS)).observation.get("tools") or ()
    finally:
        await session.close()
    if not tools:
        raise UserError(
            f"env.args.url={chosen.url}: its actions have no fields, and it has no tools"
        )
    return tuple(
        {
            "name": tool["name"],
            "description": tool.get("description") or "",
            "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
        }
        for tool in tools
    )


@dataclass(slots=True)
class _Episode:
    task: Task
    chosen: OpenEnvOptions
    acting: Acting
    _session: Session | None = None
    _rewarded: bool = False

    async def start(self) -> Sequence[Message]:
        chosen = self.chosen
        self._session = await connect(chosen.url, timeout_s=chosen.call_timeout_s)
        seen = await self._session.reset(**{**chosen.reset, "seed": self.task.seed})
        if seen.done:
            raise TaskFault(f"{chosen.url}: the episode of seed {self.task.seed} began at its end")
        opening: Message = {"role": "user", "content": self._shown(seen.observation)}
        return (
            [{"role": "system", "content": chosen.system}, opening] if chosen.system else [opening]
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _act(self, action: Mapping[str, Any]) -> Seen:
        assert self._session is not None
        return await self._session.step(action)

    async def _ended(self, **info: Any) -> dict[str, Any]:
        assert self._session is not None
        return {**info, "state": dict(await self._session.state())}

    def _reward(self, seen: Seen) -> float:
        """None is no reward yet; a NaN arrives as None too, as JSON has none."""
        self._rewarded = self._rewarded or seen.reward is not None
        if seen.done and not self._rewarded:
            raise TaskFault(f"{self.chosen.url}: the episode ended without a (finite) reward")
        return finite_reward(Score(0.0 if seen.reward is None else float(seen.reward)))

    def _shown(self, observation: Mapping[str, Any]) -> str:
        told = {k: v for k, v in observation.items() if k != "metadata" and v is not None}
        told = told or dict(observation.get("metadata") or {})
        texts = [value for value in told.values() if isinstance(value, str)]
        text = texts[0] if len(told) == 1 and texts else json.dumps(told, ensure_ascii=False)
        return cut(text, self.chosen.max_result_chars)[0]


@dataclass(slots=True)
class OpenEnvText(_Episode):
    """The policy's text is the action. Satisfies `rlframe.interfaces.Env`."""

    async def step(self, text: str) -> StepResult:
        try:
            seen = await self._act({self.acting.fill: text})
        except BadActionError as error:
            said: Message = {"role": "user", "content": f"That is no action: {error}"}
            return StepResult(False, messages=(said,), info={"bad_action": str(error)})
        reward = self._reward(seen)
        answer: Message = {"role": "user", "content": self._shown(seen.observation)}
        if seen.done:
            return StepResult(True, reward, info=await self._ended())
        return StepResult(False, reward, (answer,))


@dataclass(slots=True)
class OpenEnvTools(_Episode):
    """The policy calls tools. Satisfies `rlframe.interfaces.ToolEnv`."""

    tools: Sequence[Mapping[str, Any]] = ()
    log: list[dict[str, Any]] = field(default_factory=list)

    async def act(self, message: Message) -> StepResult:
        """All calls of a turn in order, until one ends the episode; none ends the attempt."""
        calls, reward, answers = message.get("tool_calls") or (), 0.0, []
        for call in calls:
            text, seen = await self._call(call)
            self.log.append({"tool": call["name"], **({"error": text} if seen is None else {})})
            if seen is not None:
                reward += self._reward(seen)
                if seen.done:
                    return StepResult(True, reward, info=await self._ended(tool_calls=self.log))
            names = {"tool_call_id": call.get("id", ""), "name": call["name"]}
            answers.append({"role": "tool", **names, "content": text})
        if not calls:
            return StepResult(True, info=await self._ended(tool_calls=self.log))
        return StepResult(False, reward, tuple(answers), {"tool_calls": list(self.log)})

    async def _call(self, call: Mapping[str, Any]) -> tuple[str, Seen | None]:
        name, given = call["name"], call.get("arguments", {})
        names = [tool["name"] for tool in self.tools]
        if name not in names:
            return f"Error: there is no tool '{name}'.{nearest(name, names)}", None
        if not isinstance(given, Mapping):
            return "Error: the arguments must be an object.", None
        action = dict(given)
        if self.acting.own_tools:
            action = {"type": "call_tool", "tool_name": name, "arguments": dict(given)}
        try:
            seen = await self._act(action)
        except BadActionError as error:
            return f"Error: {error}", None
        text = _tool_text(seen.observation) if self.acting.own_tools else ""
        return text or self._shown(seen.observation), seen


def _tool_text(observation: Mapping[str, Any]) -> str:
    """Of an MCP tool's observation: what it said, or what failed."""
    error, result = observation.get("error"), observation.get("result")
    if isinstance(error, Mapping):
        return f"Error: {error.get('message', error)}"
    if isinstance(result, Mapping):
        parts = [p.get("text", "") for p in result.get("content") or () if p.get("type") == "text"]
        text = "\n".join(parts) if parts else json.dumps(result.get("data", result))
        return f"Error: {text}" if result.get("is_error") else text
    return str(result) if result is not None else ""
