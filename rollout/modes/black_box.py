"""Black-box mode: an unmodified agent program does the work, and thinks through the gateway.

An attempt never raises: whatever goes wrong becomes its status, by whose fault it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rlframe.errors import InfraFault, PolicyFault, TaskFault, describe
from rlframe.interfaces import AnyEnv, Guard, RolloutRequest, Score, WorkspaceEnv
from rlframe.types import Reward, Status, Task, Trajectory
from rollout.capture.build import Built, build
from rollout.capture.call import MAIN_THREAD
from rollout.capture.capture import Capture
from rollout.gateway.registry import Registry
from rollout.guarded import Guarded, files_of
from rollout.harness.program import Program
from rollout.harness.sandbox import WORKSPACE, Installed, ProgramResult, Sandbox
from rollout.modes.agent_loop import outside
from rollout.modes.attempts import Tried, placed, trajectory_of, with_retries
from rollout.session import Session, SessionSettings


@dataclass(slots=True)
class _Attempt:
    """What has happened so far."""

    capture: Capture
    guarded: Guarded | None = None
    task_text: str = ""
    session: Session | None = None
    program: ProgramResult | None = None
    score: Score | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class BlackBox:
    """Runs attempts; shared by all attempts of a worker."""

    make_env: Callable[[Task], AnyEnv]
    settings: SessionSettings
    registry: Registry
    sandbox: Sandbox
    program: Program
    installed: Installed
    infra_retries: int
    call_log_directory: str = ""
    guard: Guard | None = None
    scratch_root: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    async def run(self, request: RolloutRequest) -> Trajectory:
        """One attempt; made again, from nothing, where our side lost it."""
        tried = await with_retries(
            _Attempt,
            lambda attempt: self._try(request, attempt),
            attempt_id=request.id,
            infra_retries=self.infra_retries,
            call_log_directory=self.call_log_directory,
        )
        return _trajectory(request, tried)

    async def _try(self, request: RolloutRequest, attempt: _Attempt) -> Status:
        scratch = Path(tempfile.mkdtemp(prefix="rlframe-attempt-", dir=self.scratch_root))
        try:
            return await self._drive(request, attempt, scratch)
        except PolicyFault as error:
            attempt.error = str(error)
            return Status.COMPLETED
        except InfraFault as error:
            attempt.error = str(error)
            return Status.INFRA_ERROR
        except TaskFault as error:
            attempt.error = str(error)
            return Status.FAILED
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def _drive(self, request: RolloutRequest, attempt: _Attempt, scratch: Path) -> Status:
        workspace = scratch / "workspace"
        workspace.mkdir()
        env = await outside(_made(self.make_env, request.task))
        try:
            attempt.task_text = await outside(env.prepare(workspace))
            guarded = attempt.guarded = Guarded.begin(self.guard, request.task, attempt.capture)
            before = files_of(workspace, shown_as=WORKSPACE) if guarded else {}
            await self._work(request, attempt, workspace, scratch)
            if guarded is not None:
                guarded.scan(before, files_of(workspace, shown_as=WORKSPACE))
            status = _status(attempt)
            if status is not Status.INFRA_ERROR:
                attempt.score = await outside(env.score(workspace))
            return status
        finally:
            try:
                await env.close()
            except Exception as error:  # noqa: BLE001 - outside code; the attempt is over already
                attempt.error = attempt.error or f"close: {describe(error)}"

    async def _work(
        self, request: RolloutRequest, attempt: _Attempt, workspace: Path, scratch: Path
    ) -> None:
        """The program's run, from its key to its end."""
        sampling = {**self.settings.sampling, **request.sampling}
        settings = replace(self.settings, sampling=sampling)
        session = attempt.session = Session(
            settings, attempt.capture, routing_key=request.id, guarded=attempt.guarded
        )
        key = self.registry.open(session)
        try:
            attempt.program = await self.sandbox.run(
                self.program,
                self.installed,
                task=attempt.task_text,
                workspace=workspace,
                scratch=scratch,
                key=key,
                model=settings.model,
                context_tokens=settings.max_context_tokens,
                output_tokens=int(sampling["max_new_tokens"]),
                stop=session.refused,
            )
        finally:
            self.registry.close(key)
            await session.close()


async def _made(make_env: Callable[[Task], AnyEnv], task: Task) -> WorkspaceEnv:
    env = make_env(task)
    if not isinstance(env, WorkspaceEnv):
        raise TaskFault(
            f"{type(env).__name__} has no prepare() and score(): rollout.mode=black_box needs a "
            "WorkspaceEnv"
        )
    return env


def _status(attempt: _Attempt) -> Status:
    session, program = attempt.session, attempt.program
    assert session is not None
    assert program is not None
    if program.timed_out:
        return Status.TRUNCATED_TIME
    if session.end_reason is not None:
        return session.end_reason
    failed = program.exit_code != 0
    if not attempt.capture.calls or (failed and session.counts.infra_faults):
        attempt.error = (
            f"the program ended with {program.exit_code} after {len(attempt.capture.calls)} calls, "
            f"{session.counts.infra_faults} lost: {program.stderr_tail[-500:]}"
        )
        return Status.INFRA_ERROR
    return Status.COMPLETED


def _trajectory(request: RolloutRequest, tried: Tried[_Attempt]) -> Trajectory:
    attempt = tried.attempt
    built = build(attempt.capture)
    info: dict[str, Any] = {
        "turns": len(attempt.capture.calls),
        "finish_reasons": [call.finish_reason for call in attempt.capture.calls],
        "prompt": attempt.task_text,
    }
    if attempt.session is not None:
        info["session"] = asdict(attempt.session.counts)
    if attempt.guarded is not None:
        info["guard"] = attempt.guarded.report(built)
    if attempt.program is not None:
        info["program"] = asdict(attempt.program)
    return trajectory_of(
        request,
        tried,
        built,
        rewards=_rewards(attempt, built),
        info=info,
        env_info=attempt.score.info if attempt.score else {},
        error=attempt.error,
    )


def _rewards(attempt: _Attempt, built: Built) -> list[Reward]:
    """The score, on the main agent's last action, and what a guard takes off."""
    guarded = attempt.guarded
    rewards = [placed(value, call, built) for value, call in guarded.penalties()] if guarded else []
    if attempt.score is None or not built.traces:
        return rewards
    value = 0.0 if guarded is not None and guarded.forfeited else attempt.score.reward
    main = [
        c.id for c in attempt.capture.calls if c.thread == MAIN_THREAD and c.id in built.last_action
    ]
    return [placed(value, main[-1], built) if main else Reward(value), *rewards]
