"""`env.name=mcp`: tasks of your own, with the tools of an MCP server.

    rlframe train env.name=mcp env.args.tasks=my_module:tasks env.args.reward=my_module:reward \\
        'env.args.command=[python, server.py]'                 # or env.args.url=http://127.0.0.1:8000/mcp

`tasks` and `reward` as in `env.name=functions`; the reward function finds the attempt's calls in
`task["calls"]`. Over stdio every attempt has a server process of its own; over HTTP a session of its own.
A stdio server runs as this process does, outside of any sandbox: it is yours, not the policy's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import options
from envs.adapters.functions import FunctionEnv, FunctionsSource
from envs.adapters.mcp_client import McpServer, connect_http, connect_stdio
from envs.tools.tool import cut
from rlframe.errors import UserError
from rlframe.interfaces import StepResult
from rlframe.types import Demonstration, Message, Task


@dataclass(frozen=True)
class McpOptions:
    """`env.args` of `env.name=mcp`."""

    tasks: str
    reward: str
    command: list[str] = field(default_factory=list)
    url: str = ""
    system: str = ""
    call_timeout_s: float = 60.0
    max_result_chars: int = 16_000

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise UserError("env.args: give either command=[...] (stdio) or url=... (HTTP)")

    async def connect(self) -> McpServer:
        if self.url:
            return await connect_http(self.url, timeout_s=self.call_timeout_s)
        return await connect_stdio(self.command, timeout_s=self.call_timeout_s)


class McpSource:
    """Satisfies `rlframe.interfaces.TaskSource`."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(McpOptions, given)
        chosen = {key: given[key] for key in ("tasks", "reward", "system") if key in given}
        self._functions = FunctionsSource(chosen, seed=seed, held_out=held_out)
        self._tools: list[dict[str, Any]] | None = None

    def train_task(self, index: int) -> Task:
        return self._functions.train_task(index)

    def held_out_tasks(self) -> Sequence[Task]:
        return self._functions.held_out_tasks()

    def make(self, task: Task) -> McpEnv:
        """Asks the server for its tools at the first call: they stand in every prompt."""
        if self._tools is None:
            with concurrent.futures.ThreadPoolExecutor(1) as thread:  # a loop may run in this one
                self._tools = thread.submit(asyncio.run, self._list()).result()
        return McpEnv(self._functions.make(task), self._tools, self._options)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=mcp: has no demonstrations for supervised fine-tuning")

    async def _list(self) -> list[dict[str, Any]]:
        server = await self._options.connect()
        try:
            return await server.tools()
        finally:
            await server.close()


@dataclass(slots=True)
class McpEnv:
    """Tools until a turn without calls: that is the answer. Satisfies `rlframe.interfaces.ToolEnv`."""

    question: FunctionEnv
    tools: Sequence[Mapping[str, Any]]
    chosen: McpOptions
    calls: list[dict[str, Any]] = field(default_factory=list)
    _server: McpServer | None = None

    async def start(self) -> Sequence[Message]:
        self._server = await self.chosen.connect()
        return await self.question.start()

    async def act(self, message: Message) -> StepResult:
        assert self._server is not None
        asked = message.get("tool_calls") or ()
        if not asked:
            row = {**self.question.task.data["row"], "calls": self.calls}
            task = Task(self.question.task.id, self.question.task.domain, (), {"row": row})
            answer = FunctionEnv(task, self.question.reward)
            result = await answer.step(str(message.get("content") or ""))
            return StepResult(True, result.reward, info={**result.info, "tool_calls": self.calls})
        answers = [await self._answer(call) for call in asked]
        return StepResult(False, messages=tuple(answers), info={"tool_calls": list(self.calls)})

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def _answer(self, call: Mapping[str, Any]) -> Message:
        assert self._server is not None
        began, arguments = time.monotonic(), call.get("arguments", {})
        if call["name"] not in {tool["name"] for tool in self.tools}:
            text = f"Error: there is no tool '{call['name']}'."
        elif not isinstance(arguments, Mapping):
            text = "Error: the arguments must be an object."
        else:
            text = await self._server.call(call["name"], arguments)
        shown, missing = cut(text, self.chosen.max_result_chars)
        seconds = round(time.monotonic() - began, 4)
        self.calls.append(
            {"tool": call["name"], "arguments": arguments, "seconds": seconds, "cut_chars": missing}
        )
        return {
            "role": "tool",
            "tool_call_id": call.get("id", ""),
            "name": call["name"],
            "content": shown,
        }
