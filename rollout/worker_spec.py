"""What a rollout worker is told at its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlframe.errors import UserError
from rlframe.interfaces import Ask, Guard, TaskSource
from rlframe.sandbox.bubblewrap import find_bubblewrap
from rollout.compaction import CompactionPolicy
from rollout.harness.program import find_program
from rollout.harness.sandbox import find_installed
from rollout.modes.white_box import Limits
from rollout.sub_agents import SubAgentPolicy


@dataclass(frozen=True, slots=True)
class BlackBoxSpec:
    """Which program drives, and what an attempt may use."""

    program: str
    programs_directory: str
    max_calls: int
    max_output_tokens: int

    def check(self) -> None:
        """UserError for an unknown program, one that is not installed, and without bubblewrap."""
        if not self.program:
            raise UserError("rollout.mode=black_box needs rollout.black_box.program")
        find_installed(find_program(self.program), Path(self.programs_directory))
        find_bubblewrap()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to know."""

    make_source: Callable[[], TaskSource]
    tokenizer_directory: str
    vocab_size: int
    sampling: Mapping[str, Any]
    limits: Limits
    max_context_tokens: int
    request_timeout_s: float
    max_concurrency: int
    """Attempts in flight on this worker."""
    domain_concurrency: Mapping[str, int] = field(default_factory=dict)
    """The same for single domains, or for what stands before a domain's slash."""
    compaction: CompactionPolicy = CompactionPolicy()
    sub_agents: SubAgentPolicy = SubAgentPolicy()
    black_box: BlackBoxSpec | None = None
    """Given: an agent program drives every attempt."""
    make_guard: Callable[[Ask], Guard] | None = None
    """Given: every tool call of a task with rules passes it. It is told how to ask an engine of the run."""
    call_log_directory: str = ""
    extras: tuple[str, ...] = ()
    """What engines are asked for besides (`rollout.engine.client.EXTRAS`); it goes into the call log."""
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    template_args: Mapping[str, Any] = field(default_factory=dict)
