"""Trajectories with teachers that answer what a test tells them to: no engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from rlframe.teaching import ScoreRequest, TeacherScores
from rlframe.types import Link, LinkKind, Reward, Status, Trace, Trajectory


class ScriptedTeachers:
    """`rlframe.teaching.TeacherService`: each token's logprob is -0.01 times its id, unless `answer` says otherwise.
    Nothing is answered before `release`."""

    def __init__(
        self,
        answer: Callable[[ScoreRequest], TeacherScores] | None = None,
        *,
        released: bool = True,
    ) -> None:
        self.asked: list[ScoreRequest] = []
        self.closed = False
        self._answer = answer or score
        self._changed = threading.Condition()
        self._waiting: list[ScoreRequest] = []
        self._released = released

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        with self._changed:
            self.asked += requests
            self._waiting += requests
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def collect(self, timeout_s: float) -> list[TeacherScores]:
        with self._changed:
            self._changed.wait_for(lambda: self._released and bool(self._waiting), timeout_s)
            if not self._released:
                return []
            ready, self._waiting = self._waiting, []
        return [self._answer(request) for request in ready]

    def metrics(self) -> dict[str, float]:
        return {"swaps": 1.0}

    def close(self) -> None:
        self.closed = True


def score(request: ScoreRequest) -> TeacherScores:
    length, k = len(request.token_ids), request.top_k
    logprobs = np.float32(-0.01) * request.token_ids.astype(np.float32)
    logprobs[: request.begin] = 0.0
    if not k:
        return TeacherScores(request.id, request.teacher, logprobs)
    ids = np.tile(np.arange(k, dtype=np.int32), (length, 1))
    return TeacherScores(
        request.id,
        request.teacher,
        logprobs,
        ids,
        np.full((length, k), np.log(0.9 / k), np.float32),
    )


def trace(ids: Sequence[int], mask: Sequence[int], logprob: float = -1.0) -> Trace:
    trains = np.array(mask, bool)
    return Trace(
        token_ids=np.array(ids, np.int32),
        loss_mask=trains,
        rollout_logprobs=np.where(trains, logprob, 0.0).astype(np.float32),
        versions=np.where(trains, 0, -1).astype(np.int32),
    )


def trajectory(name: str, domain: str, *traces: Trace, reward: float = 1.0) -> Trajectory:
    """Its traces hang together as compactions."""
    return Trajectory(
        name,
        name,
        domain,
        Status.COMPLETED,
        traces,
        (Reward(reward, trace=len(traces) - 1),),
        tuple(Link(LinkKind.CONTINUES, i, i - 1) for i in range(1, len(traces))),
    )
