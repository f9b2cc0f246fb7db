"""`env.name=verifiers`: an environment of the `verifiers` package, unchanged.

    rlframe train env.name=verifiers env.args.environment=my-environment

Its data set's rows are the tasks, its loop, tools and stop conditions run the attempt, its rubric scores it; the
policy that it asks is ours. It runs in a process beside each rollout worker, in the Python that has it:
`scripts/install_peers.py verifiers` makes one (`.peers/verifiers`), `env.args.python` names another.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import options
from envs.adapters.peer import INSIDE, python_with
from envs.adapters.peer_program import PeerProgram
from envs.epochs import Epochs
from envs.tools.tool_env import finite_reward
from rlframe.errors import TaskFault, UserError, nearest
from rlframe.interfaces import AnyEnv, Score, StepResult
from rlframe.types import Demonstration, Message, Task


@dataclass(frozen=True)
class VerifiersOptions:
    """`env.args` of `env.name=verifiers`."""

    environment: str
    """As `load_environment` takes it: the name of an installed module, or of one in the working directory."""
    args: dict[str, Any] = field(default_factory=dict)
    """Of its own `load_environment(...)`."""
    python: str = ""
    turn_timeout_s: float = 600.0
    """Of the environment's answer to one turn; its loading and scoring too."""
    domain: str = ""


class VerifiersSide:
    """The process that runs `inside/verifiers_side.py`."""

    def __init__(self, chosen: VerifiersOptions) -> None:
        self._chosen, self.turn_timeout_s = chosen, chosen.turn_timeout_s
        python, script = python_with("verifiers", chosen.python), INSIDE / "verifiers_side.py"
        self.program = PeerProgram(
            [python, str(script), chosen.environment, json.dumps(chosen.args)],
            what="the verifiers environment's process",
        )

    def about(self) -> Mapping[str, Any]:
        try:
            return self._result(
                self.program.ask("about", {}, timeout_s=self.turn_timeout_s).result()
            )
        except BaseException:
            self.program.end()
            raise

    async def ask(self, method: str, **given: Any) -> Mapping[str, Any]:
        """UserError, TaskFault, InfraFault: what is wrong, by whose fault."""
        asked = self.program.ask(method, given, timeout_s=self.turn_timeout_s)
        try:
            return self._result(await asyncio.wrap_future(asked))
        except TimeoutError:
            said = f"the environment did not answer in {self.turn_timeout_s:g} s"
            raise TaskFault(f"verifiers: {self._chosen.environment}: {said}") from None

    def forget(self, attempt: str) -> None:
        """It is not wanted any more; nobody waits for an answer."""
        self.program.ask("end", {"attempt": attempt}, timeout_s=self.turn_timeout_s)

    def _result(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        if "error" in answer:
            raise self._fault(answer["error"])
        result: Mapping[str, Any] = answer["result"]
        return result

    def _fault(self, error: Mapping[str, Any]) -> Exception:
        kind, said = error.get("kind"), error.get("message", "")
        if kind == "unknown":
            there = json.loads(said)
            return UserError(
                f"env.args.environment={self._chosen.environment}: no such environment is installed "
                f"for {self.program.command[0]}.{nearest(self._chosen.environment.replace('-', '_'), there)}"
            )
        if kind == "user":
            return UserError(f"env.args.environment={self._chosen.environment}: {said}")
        return TaskFault(f"verifiers: {self._chosen.environment}: {said}")


class VerifiersSource:
    """Satisfies `rlframe.interfaces.TaskSource`. Held out are the first rows of its evaluation set; where it has
    none, the last of its training set."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = chosen = options.parse(VerifiersOptions, given)
        self._epochs, self.side = Epochs(seed), VerifiersSide(chosen)
        self._about = self.side.about()
        self._count, self._trained = held_out, self._training_rows(held_out)

    def _training_rows(self, held_out: int) -> int:
        rows, own = self._about["train"], self._about["held_out"]
        if not 0 < held_out <= (own or rows - 1):
            self.side.program.end()
            raise UserError(
                f"env.held_out={held_out}: {self._options.environment} has {rows} training rows and "
                f"{own} for evaluation; at least one must be left for training, and one held out"
            )
        return int(rows if own else rows - held_out)

    def train_task(self, index: int) -> Task:
        if not self._trained:
            raise UserError(
                f"env.args.environment={self._options.environment}: has no training set"
            )
        _, row = self._epochs.row(index, count=self._trained)
        return self._task(f"train/{row}", "train", row)

    def held_out_tasks(self) -> Sequence[Task]:
        if self._about["held_out"]:
            return [self._task(f"held_out/{row}", "held_out", row) for row in range(self._count)]
        rows = range(self._trained, self._trained + self._count)
        return [self._task(f"held_out/{row}", "train", row) for row in rows]

    def make(self, task: Task) -> AnyEnv:
        if self._about["tools"]:
            return VerifiersToolEnv(task, self.side, tools=self._about["tools"])
        return VerifiersEnv(task, self.side)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=verifiers: has no demonstrations for supervised fine-tuning")

    def _task(self, name: str, split: str, row: int) -> Task:
        # What is asked is known when the environment asks it.
        domain = self._options.domain or self._options.environment
        return Task(name, domain, (), {"split": split, "row": row})


_ATTEMPTS = itertools.count()


@dataclass(slots=True)
class _Attempt:
    task: Task
    side: VerifiersSide
    name: str = field(default_factory=lambda: f"{os.getpid()}-{next(_ATTEMPTS)}")
    _under_way: bool = False

    async def start(self) -> Sequence[Message]:
        self._under_way = True
        asked = await self.side.ask("begin", attempt=self.name, **self.task.data)
        if asked.get("done"):
            raise TaskFault(
                f"verifiers: {self.task.id} ended ({asked['stop']}) before it asked anything"
            )
        return tuple(asked["messages"])

    async def _answer(self, message: Mapping[str, Any]) -> StepResult:
        asked = await self.side.ask("answer", attempt=self.name, message=dict(message))
        if not asked.get("done"):
            return StepResult(False, messages=tuple(asked["messages"]))
        self._under_way = False
        info = {"metrics": asked["metrics"], "stop": asked["stop"], "truncated": asked["truncated"]}
        return StepResult(True, finite_reward(Score(asked["reward"])), info=info)

    async def close(self) -> None:
        if self._under_way:
            self.side.forget(self.name)


@dataclass(slots=True)
class VerifiersEnv(_Attempt):
    """Without tools. Satisfies `rlframe.interfaces.Env`."""

    async def step(self, text: str) -> StepResult:
        return await self._answer({"role": "assistant", "content": text})


@dataclass(slots=True)
class VerifiersToolEnv(_Attempt):
    """Satisfies `rlframe.interfaces.ToolEnv`."""

    tools: Sequence[Mapping[str, Any]] = ()

    async def act(self, message: Message) -> StepResult:
        calls = [dict(call) for call in message.get("tool_calls") or ()]
        said = {"role": "assistant", "content": str(message.get("content") or "")}
        return await self._answer({**said, "tool_calls": calls} if calls else said)
