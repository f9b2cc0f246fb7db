"""What every mode does around an attempt: its call log, making it again, and the trajectory at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlframe.interfaces import RolloutRequest
from rlframe.invariants import check_trajectory
from rlframe.trajectory_record import encode_info
from rlframe.types import Reward, Status, Trajectory
from rollout.capture.build import Built
from rollout.capture.call_log import open_log
from rollout.capture.capture import Capture

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Tried(Generic[A]):
    """How an attempt ended, and what it left."""

    attempt: A
    status: Status
    seconds: float
    """Of all tries."""
    tries: int


async def with_retries(
    begin: Callable[[Capture], A],
    go: Callable[[A], Awaitable[Status]],
    *,
    attempt_id: str,
    infra_retries: int,
    call_log_directory: str,
) -> Tried[A]:
    """Goes through one attempt; made again, from nothing, where our side lost it."""
    started = time.monotonic()
    tries = 0
    while True:
        tries += 1
        log = open_log(call_log_directory, attempt_id)
        attempt = begin(Capture(sink=log))
        try:
            status = await go(attempt)
        finally:
            if log is not None:
                log.close()
        if status is not Status.INFRA_ERROR or tries > infra_retries:
            return Tried(attempt, status, time.monotonic() - started, tries)


def placed(value: float, call: int, built: Built) -> Reward:
    """On the call's last token; where that is in no trace (a guard left it out), on the last call before
    it that is, and else on what comes first."""
    at = built.last_action.get(call)
    if at is None:
        earlier = [c for c in built.last_action if c < call]
        at = built.last_action[max(earlier)] if earlier else None
    return Reward(value) if at is None else Reward(value, at.trace, at.position)


def trajectory_of(
    request: RolloutRequest,
    tried: Tried[Any],
    built: Built,
    *,
    rewards: Sequence[Reward],
    info: Mapping[str, Any],
    env_info: Mapping[str, Any],
    error: str,
) -> Trajectory:
    """Checked. `env_info` and `error` are added to `info` where there is any."""
    whole = {**info, "seconds": round(tried.seconds, 4), "tries": tried.tries}
    if env_info:
        # Whatever the environment put there must survive pickling and the store.
        whole["env"] = json.loads(encode_info(env_info))
    if error:
        whole["error"] = error
    trajectory = Trajectory(
        id=request.id,
        task_id=request.task.id,
        domain=request.task.domain,
        status=tried.status,
        traces=built.traces,
        rewards=tuple(rewards),
        links=built.links,
        info=whole,
    )
    check_trajectory(trajectory)
    return trajectory
