"""Real agent programs in the real sandbox, through the real gateway, driven by a scripted policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_templates import QWEN3, save_family_tokenizer
from scripted_policy import STEP, Meeting, Prompt, RuledEngine, call

from rlframe.errors import UserError
from rlframe.interfaces import Guard, RolloutRequest, Score
from rlframe.sandbox.bubblewrap import find_bubblewrap
from rlframe.sandbox.limits import Limits
from rlframe.types import Task, Trajectory
from rollout.capture.call import Call, CallKind
from rollout.capture.call_log import read_calls
from rollout.engine.parser_check import parser_for
from rollout.gateway.registry import Registry
from rollout.gateway.server import Gateway
from rollout.harness.program import Program, find_program
from rollout.harness.sandbox import Sandbox, find_installed
from rollout.modes.black_box import BlackBox
from rollout.renderer import Renderer
from rollout.session import SessionSettings

INSTALLED = (Path(__file__).resolve().parents[1] / ".agents").resolve()
TASK = "Put the text 'mended' into the file answer.txt."
BEFORE, AFTER = "broken\n", "mended"
TRAINED = (CallKind.TURN, CallKind.COMPACTION)
SHELLS: dict[str, Callable[[str], dict[str, Any]]] = {
    "mini_swe_agent": lambda command: call("bash", command=command),
    "claude_code": lambda command: call("Bash", command=command, description="run it"),
    "codex": lambda command: call("exec_command", cmd=command, max_output_tokens=20_000),
    "opencode": lambda command: call("bash", command=command, description="run it"),
    "qwen_code": lambda command: call("run_shell_command", command=command, is_background=False),
    "openai_agents": lambda command: call("shell", command=command),
}
"""Each program's tool that runs a command; the other two have none."""


@dataclass(slots=True)
class Workspace:
    """The task: a file to edit."""

    text: str = TASK
    files: dict[str, str] = field(default_factory=lambda: {"answer.txt": BEFORE})
    left: dict[str, str] = field(default_factory=dict)

    async def prepare(self, directory: Path) -> str:
        for name, content in self.files.items():
            (directory / name).write_text(content)
        return self.text

    async def score(self, directory: Path) -> Score:
        self.left = {p.name: p.read_text() for p in directory.iterdir() if p.is_file()}
        return Score(float(self.left["answer.txt"].strip() == AFTER))

    async def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt, and the engine's own account of it."""

    trajectory: Trajectory
    calls: list[Call]
    engine: RuledEngine
    workspace: Workspace

    @property
    def session(self) -> dict[str, int]:
        counts: dict[str, int] = self.trajectory.info["session"]
        return counts

    @property
    def kinds(self) -> Counter[CallKind]:
        return Counter(call.kind for call in self.calls)

    @property
    def threads(self) -> list[str]:
        return list(dict.fromkeys(c.thread for c in self.calls))

    def said(self) -> str:
        """For the message of a failed test."""
        turns = [f"{s.prompt.last[-300:]!r} -> {s.answer[:200]!r}" for s in self.engine.log]
        info = {k: v for k, v in self.trajectory.info.items() if k != "prompt"}
        return "\n".join([*turns, str(info)])


def check_exact(ran: Ran) -> None:
    """Against the engine's log alone: every token that trains stands where that engine sampled it, after
    exactly the prompt that it was given, with its logprob; every token of the work trains, once."""
    log = ran.engine.log
    trained: Counter[tuple[int, int]] = Counter()
    for trace in ran.trajectory.traces:
        for position in np.flatnonzero(trace.loss_mask).tolist():
            logprob = -float(trace.rollout_logprobs[position])
            number = math.floor(logprob)
            index = round((logprob - number) / STEP)
            sampled = log[number - 1]
            whole = (*sampled.prompt_ids, *sampled.output_ids)
            assert position == len(sampled.prompt_ids) + index
            assert tuple(trace.token_ids[: position + 1].tolist()) == whole[: position + 1]
            trained[number, index] += 1
    assert set(trained.values()) == {1}
    numbers = {math.floor(-float(c.logprobs[0])): c for c in ran.calls}
    assert sorted(numbers) == list(range(1, len(log) + 1)), "calls that are not in the log"
    expected = {
        (number, index)
        for number, call in numbers.items()
        if call.kind in TRAINED
        for index in range(len(call.output_ids))
    }
    assert set(trained) == expected


def needs(name: str) -> None:
    """Skips the test where the program can't run here."""
    try:
        find_bubblewrap()
        find_installed(find_program(name), INSTALLED)
    except UserError as error:
        pytest.skip(str(error))


@dataclass(frozen=True, slots=True)
class Runs:
    """Starts attempts; `renderer` is shared, it is slow to make."""

    renderer: Renderer
    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Runs:
        return cls(Renderer(str(save_family_tokenizer(directory / "tokenizer", QWEN3))), directory)

    async def run(
        self,
        program: Program,
        rule: Callable[[Prompt], str],
        *,
        workspace: Workspace | None = None,
        meeting: Meeting | None = None,
        task: Task | None = None,
        guard: Guard | None = None,
        **settings: Any,
    ) -> Ran:
        needs(program.name)
        engine = RuledEngine(self.renderer, rule, meeting)
        env = workspace or Workspace()
        registry = Registry()
        gateway = Gateway(registry)
        socket = self.directory / "gateway.sock"
        await gateway.listen_unix(socket)
        try:
            mode = BlackBox(
                make_env=lambda task: env,
                settings=self._settings(engine, **settings),
                registry=registry,
                sandbox=Sandbox(socket, Limits(timeout_s=240.0)),
                program=program,
                installed=find_installed(program, INSTALLED),
                infra_retries=0,
                call_log_directory=str(self.directory / "calls"),
                guard=guard,
            )
            asked = RolloutRequest(f"{program.name}-0", task or Task("t", "d", ()))
            trajectory = await mode.run(asked)
        finally:
            await gateway.close()
            socket.unlink(missing_ok=True)
        log = self.directory / "calls" / f"{program.name}-0.calls"
        calls = read_calls(log)
        log.unlink()
        return Ran(trajectory, calls, engine, env)

    def _settings(self, engine: RuledEngine, **changed: Any) -> SessionSettings:
        renderer = self.renderer
        parser = parser_for(renderer, tool_call_parser="qwen25", reasoning_parser="qwen3")
        return SessionSettings(
            generate=engine.generate,
            renderer=renderer,
            sampling={"temperature": 1.0, "max_new_tokens": 4000},
            parser=parser,
            **{
                "max_context_tokens": 10_000_000,
                "max_calls": 60,
                "max_output_tokens": 1_000_000,
                **changed,
            },
        )
