"""An attempt at a task with tools in a sandbox: a `ToolEnv` over any backend.

Whose fault what is: wrong arguments, a command that fails, a limit hit: the policy reads it and goes on. A
sandbox destroyed from within: the policy's, the attempt ends without reward. A grader that raises or
returns no number: the task's (`TaskFault`). A sandbox lost otherwise: ours (`InfraFault`, tried again).
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.tools.files import EDIT, READ, SEARCH, WRITE
from envs.tools.shell import BASH, PYTHON
from envs.tools.tool import Tool, ToolError, ToolOutput, ToolSettings, checked_arguments, parameters
from rlframe.errors import PolicyFault, TaskFault, nearest
from rlframe.interfaces import Score, StepResult
from rlframe.sandbox.protocol import Sandbox
from rlframe.types import Message

SUBMIT = "submit"
MAX_LOGGED = 1000
Grade = Callable[[Sandbox, str], Awaitable[Score]]
"""The agent's sandbox and what it submitted -> its score."""


async def _no_run(sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings) -> ToolOutput:
    raise AssertionError("submit is the environment's own")


SUBMIT_TOOL = Tool(
    SUBMIT,
    "Say that the work is done. It ends the attempt and can't be taken back.",
    parameters([], answer={"type": "string", "description": "where the task asks for one"}),
    _no_run,
)
ALL_TOOLS = (BASH, PYTHON, READ, WRITE, EDIT, SEARCH, SUBMIT_TOOL)
TOOLS_BY_NAME = {tool.name: tool for tool in ALL_TOOLS}


@dataclass(slots=True)
class SandboxToolEnv:
    """Satisfies `rlframe.interfaces.ToolEnv`."""

    messages: Sequence[Message]
    opens: Callable[[], Awaitable[Sandbox]]
    """A sandbox in the state in which the attempt begins."""
    grade: Grade
    tools_allowed: Sequence[Tool] = ALL_TOOLS
    settings: ToolSettings = ToolSettings()
    log: list[dict[str, Any]] = field(default_factory=list)
    """One entry a call: tool, seconds, error, exit code, limit, characters cut."""
    calls: int = 0
    _sandbox: Sandbox | None = None

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return [tool.shown() for tool in self.tools_allowed]

    async def start(self) -> Sequence[Message]:
        self._sandbox = await self.opens()
        return self.messages

    async def act(self, message: Message) -> StepResult:
        """All calls of a turn, in order; `submit`, or a turn without calls, ends and grades."""
        calls = message.get("tool_calls") or ()
        answers: list[Message] = []
        try:
            for call in calls:
                if call["name"] == SUBMIT and SUBMIT_TOOL in self.tools_allowed:
                    submitted = self._submitted(call)
                    if submitted is not None:
                        return await self._end(submitted)
                    answers.append(_result(call, "Error: 'answer' must be a text."))
                else:
                    answers.append(_result(call, await self._call(call)))
            if not calls:
                return await self._end(str(message.get("content") or ""))
        except PolicyFault as error:
            info = {**self._info(), "fault": "policy", "error": str(error)}
            return StepResult(done=True, reward=0.0, info=info)
        return StepResult(done=False, messages=tuple(answers), info=self._info())

    def worded(self, call: Mapping[str, Any], said: str) -> str:
        """Raises nothing: a call of a tool that is not there, or with wrong arguments, is answered as ever."""
        try:
            tool = self._tool(call["name"])
            return tool.worded(checked_arguments(tool, call.get("arguments", {})), said)
        except ToolError as wrong:
            return str(wrong)

    async def close(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.close()

    async def _call(self, call: Mapping[str, Any]) -> str:
        assert self._sandbox is not None
        began, error, output = time.monotonic(), "", None
        try:
            tool = self._tool(call["name"])
            arguments = checked_arguments(tool, call.get("arguments", {}))
            output = await tool.run(self._sandbox, arguments, self.settings)
            return output.text
        except ToolError as wrong:
            error = str(wrong)
            return error
        except ValueError as wrong:  # a NUL in a path or a word, a lone surrogate
            error = f"Error: {wrong}"
            return error
        finally:
            self._note(call["name"], time.monotonic() - began, error, output)

    def _tool(self, name: str) -> Tool:
        for tool in self.tools_allowed:
            if tool.name == name:
                return tool
        names = [tool.name for tool in self.tools_allowed]
        raise ToolError(f"Error: there is no tool '{name}'.{nearest(name, names)}")

    def _submitted(self, call: Mapping[str, Any]) -> str | None:
        try:
            return str(checked_arguments(SUBMIT_TOOL, call.get("arguments", {})).get("answer", ""))
        except ToolError:
            return None

    async def _end(self, submitted: str) -> StepResult:
        assert self._sandbox is not None
        began = time.monotonic()
        score = await self.grade(self._sandbox, submitted)
        reward = finite_reward(score)
        info = {**self._info(), **score.info, "grading_seconds": time.monotonic() - began}
        return StepResult(done=True, reward=reward, info=info)

    def _note(self, name: str, seconds: float, error: str, output: ToolOutput | None) -> None:
        self.calls += 1
        entry: dict[str, Any] = {"tool": name, "seconds": round(seconds, 4)}
        if error:
            entry["error"] = error[:200]
        if output is not None:
            known = {
                "exit_code": output.exit_code,
                "limit": output.limit,
                "cut_chars": output.cut_chars,
            }
            entry |= {key: value for key, value in known.items() if value}
        if len(self.log) < MAX_LOGGED:
            self.log.append(entry)

    def _info(self) -> dict[str, Any]:
        limits = [entry["limit"] for entry in self.log if entry.get("limit")]
        return {
            "tool_calls": list(self.log),
            "calls": self.calls,
            "call_errors": sum("error" in entry for entry in self.log),
            "limits_hit": limits,
        }


def finite_reward(score: Any) -> float:
    """Raises TaskFault where a grader returned no score with a finite number."""
    reward = getattr(score, "reward", None)
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise TaskFault(f"the verifier returned {reward!r}: must be a finite number")
    return float(reward)


def _result(call: Mapping[str, Any], text: str) -> Message:
    return {
        "role": "tool",
        "tool_call_id": call.get("id", ""),
        "name": call["name"],
        "content": text,
    }
