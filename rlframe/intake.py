"""What is refused at the door: trajectories that must not train, each with its reason.

An attempt whose data is not sound is set aside and counted like any other failure; it never ends a run by
itself, and never trains.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from rlframe.errors import RunError
from rlframe.invariants import check_trajectory
from rlframe.types import Status, Trajectory


@dataclass(frozen=True, slots=True)
class Intake:
    """Looks at each finished attempt once, before it is stored."""

    max_trace_tokens: int
    """What one micro-batch holds (`trainer.max_tokens_per_micro_batch` times context parallelism)."""

    def checked(self, trajectory: Trajectory, *, version: int) -> Trajectory:
        """The trajectory as it came, or one that says why it is refused and does not train.

        `version`: the newest that engines may serve.
        """
        reason = self.refusal(trajectory, version=version)
        if not reason:
            return trajectory
        return replace(
            trajectory,
            status=Status.FAILED,
            traces=(),
            rewards=(),
            links=(),
            info={**trajectory.info, "error": f"refused: {reason}"},
        )

    def refusal(self, trajectory: Trajectory, *, version: int) -> str:
        """Why it must not train; empty where nothing is wrong. One that has failed anyhow is not asked."""
        if not trajectory.status.is_trainable:
            return ""
        try:
            check_trajectory(trajectory)
        except ValueError as error:
            return str(error)
        if not trajectory.actions and trajectory.info.get("guard", {}).get("blocked"):
            return "no action: every turn had a call that the guard blocked (guard.loss=mask)"
        if not trajectory.actions:
            return "no action: no token of it was sampled by the policy"
        longest = max(len(trace) for trace in trajectory.traces)
        if longest > self.max_trace_tokens:
            return (
                f"a trace of {longest} tokens, and a micro-batch holds {self.max_trace_tokens} "
                "(trainer.max_tokens_per_micro_batch times trainer.*.layout.context)"
            )
        newest = max(int(trace.versions.max()) for trace in trajectory.traces)
        if newest > version:
            return f"tokens of weight version {newest}, and none above {version} was published"
        return ""


class LossLimit:
    """Ends a run in which too many attempts come to nothing.

    limit = LossLimit(max_share=0.75, window=64)
    limit.note(trajectory, lost=True)               # RunError once it is passed, naming the last reason
    """

    def __init__(self, *, max_share: float, window: int) -> None:
        """`window`: over so many attempts is the share taken, none before there are as many."""
        self._max_share = max_share
        self._lost: deque[bool] = deque(maxlen=window)

    def note(self, trajectory: Trajectory, *, lost: bool) -> None:
        self._lost.append(lost)
        share = sum(self._lost) / len(self._lost)
        if lost and len(self._lost) == self._lost.maxlen and share > self._max_share:
            reason = trajectory.info.get("error", trajectory.status.value)
            raise RunError(
                f"{share:.0%} of the last {len(self._lost)} attempts came to nothing "
                f"(rollout.max_lost_share={self._max_share:g}); the last, {trajectory.id}, with status "
                f"{trajectory.status.value}: {reason}"
            )
