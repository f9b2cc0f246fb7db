"""Trajectories go to the teachers as soon as they finish; the learner fetches what they said.

    scoring.begin(finished)             # from the producer, as each finishes; returns at once
    scoring.scores(batch)               # from the learner; waits for what is missing of it

Nobody waits for a whole batch before scoring starts: while the last attempts of a batch still run, the first are
scored already. Each trace is read in its own context, whatever mode made it. What is scored is kept
(`rlframe.distillation.score_store`), so that a step that is taken again learns from the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rlframe.collector import Collector
from rlframe.distillation.signals import Taught
from rlframe.teaching import ScoreRequest, TeacherScores, TeacherService
from rlframe.types import Trace, Trajectory


class Kept(Protocol):
    """What is needed of the score store."""

    def put(self, trajectory_id: str, taught: Sequence[Taught]) -> None: ...
    def get(self, trajectory: Trajectory, *, top_k: int) -> list[Taught] | None: ...


class Scoring:
    """`start()` before use, `close()` after. Called from the producer's thread and from the loop's."""

    def __init__(
        self,
        service: TeacherService,
        kept: Kept,
        teacher_of: Callable[[Trajectory], str],
        *,
        top_k: int = 0,
    ) -> None:
        self._service, self._kept, self._teacher_of, self._top_k = service, kept, teacher_of, top_k
        self._collector = Collector("scores", service.collect, self._keep)
        self._changed = self._collector.changed
        self._asked: dict[str, _Asked] = {}  # by trajectory, until its scores are fetched
        self._waited_s = 0.0

    def start(self) -> None:
        self._collector.start()

    def begin(self, trajectories: Sequence[Trajectory]) -> None:
        """Ask about those that were not asked about, nor scored before."""
        requests: list[ScoreRequest] = []
        with self._changed:
            for trajectory in trajectories:
                if trajectory.id in self._asked:
                    continue
                found = self._kept.get(trajectory, top_k=self._top_k)
                asked = _Asked(trajectory, self._teacher_of(trajectory), found)
                self._asked[trajectory.id] = asked
                if found is None:
                    requests += asked.requests(self._top_k)
                    asked.settle(self._top_k)
        if requests:
            self._service.submit(requests)

    def scores(self, trajectories: Sequence[Trajectory]) -> list[Taught]:
        """One a trace, in the order of `batch.flatten`; fetched once. Raises what the service raised."""
        self.begin(trajectories)
        began_s = time.monotonic()
        with self._changed:
            self._collector.wait_for(lambda: all(self._asked[t.id].complete for t in trajectories))
            self._waited_s += time.monotonic() - began_s
            found = [self._asked.pop(t.id).taught for t in trajectories]
        return [scores for own in found for scores in own or ()]

    def forget(self, ids: Sequence[str]) -> None:
        """These will not train."""
        with self._changed:
            for i in ids:
                self._asked.pop(i, None)

    def metrics(self) -> dict[str, float]:
        """Since the last call: the service's own, and how long the learner waited for scores."""
        with self._changed:
            waited_s, self._waited_s = self._waited_s, 0.0
        return {"waited_s": waited_s, **self._service.metrics()}

    def close(self) -> None:
        """What is scored is kept already."""
        self._collector.close()

    def _keep(self, found: Sequence[TeacherScores]) -> None:
        for scores in found:
            self._keep_one(scores)

    def _keep_one(self, scores: TeacherScores) -> None:
        trajectory_id, _, position = scores.id.rpartition("/")
        with self._changed:
            asked = self._asked.get(trajectory_id)
            if asked is None or asked.complete:
                return  # forgotten, or asked for twice after a restart
            asked.arrived[int(position)] = scores
            asked.settle(self._top_k)
            if asked.taught is None:
                return
            self._kept.put(trajectory_id, asked.taught)


class _Asked:
    """One trajectory under way to a teacher and back."""

    def __init__(self, trajectory: Trajectory, teacher: str, taught: list[Taught] | None) -> None:
        self.trajectory, self.teacher, self.taught = trajectory, teacher, taught
        self.arrived: dict[int, TeacherScores] = {}

    @property
    def complete(self) -> bool:
        return self.taught is not None

    def requests(self, top_k: int) -> list[ScoreRequest]:
        """One for each trace that has actions."""
        return [
            ScoreRequest(
                id=f"{self.trajectory.id}/{position}",
                teacher=self.teacher,
                token_ids=trace.token_ids,
                begin=int(np.argmax(trace.loss_mask)),
                top_k=top_k,
            )
            for position, trace in enumerate(self.trajectory.traces)
            if trace.actions
        ]

    def settle(self, top_k: int) -> None:
        """Makes the whole of what has arrived, when all of it has."""
        missing = [
            position
            for position, trace in enumerate(self.trajectory.traces)
            if trace.actions and position not in self.arrived
        ]
        if missing:
            return
        self.taught = [
            self._taught(trace, self.arrived.get(position), top_k)
            for position, trace in enumerate(self.trajectory.traces)
        ]
        self.arrived.clear()

    def _taught(self, trace: Trace, scores: TeacherScores | None, width: int) -> Taught:
        """All traces of a batch get candidates of one width, also those that nobody read."""
        if scores is not None and not scores.error:
            return Taught(self.teacher, scores.logprobs, scores.top_ids, scores.top_logprobs)
        zeros = np.zeros(len(trace), np.float32)
        ids = np.tile(np.arange(width, dtype=np.int32), (len(trace), 1)) if width else None
        top = np.full((len(trace), width), -1.0, np.float32) if width else None
        return Taught(self.teacher, zeros, ids, top, error="" if scores is None else scores.error)
