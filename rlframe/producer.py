"""The producer: admits tasks while slots are free, keeps what finishes, hands over batches.

Staleness is capacity. There are `batch_trajectories * (1 + max_staleness)` slots; a task takes one
when it is admitted and gives it back when the step that trained it is over. With `max_staleness = 0`
that is the on-policy loop: all of a batch is admitted at one version, and the step waits for all of it.

    collector thread   consumes service.collect(); produces finished trajectories, *in the store first*
    take(step)         waits for a full batch; unblocked by the collector; records the batch, then returns it
    release(version)   frees the slots of the batch just trained; admits new tasks at the new version

The staleness bound is strict: an attempt whose admission would lie more than `max_staleness` versions
back at the next step belongs to this step's batch, and the step waits for it.

Over-admission does not wait: there are more slots by that share, the first attempts to finish make the
batch, and those that would be too old for the next one are cancelled or dropped. It trades a bias
towards short attempts for steps that no long one holds up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from rlframe.collector import Collector
from rlframe.intake import Intake, LossLimit
from rlframe.interfaces import RolloutRequest, RolloutService, TaskSource
from rlframe.types import Status, Task, Trajectory

EVALUATION_PREFIX = "eval/"
TRAINING_PREFIX = "train/"


class Ledger(Protocol):
    """What the producer needs of the store (`rlframe.store`)."""

    def admit(self, ids: Sequence[str]) -> None: ...
    def put(self, trajectories: Sequence[Trajectory]) -> None: ...
    def drop(self, trajectory_id: str, reason: str) -> None: ...
    def record_batch(self, step: int, ids: Sequence[str]) -> None: ...
    def batch(self, step: int) -> list[Trajectory] | None: ...
    def pending(self) -> list[Trajectory]: ...
    def unfinished(self) -> list[str]: ...
    def admitted(self) -> int: ...


class Listener(Protocol):
    """Who hears of attempts as they finish (`rlframe.distillation.scoring`). Neither method may wait."""

    def begin(self, trajectories: Sequence[Trajectory]) -> None:
        """These may train, and are in the store."""
        ...

    def forget(self, ids: Sequence[str]) -> None:
        """These will not train after all."""
        ...


class _Nobody:
    def begin(self, trajectories: Sequence[Trajectory]) -> None: ...
    def forget(self, ids: Sequence[str]) -> None: ...


def task_index(trajectory_id: str) -> int:
    """The index of a training trajectory's attempt; `rollouts_per_task` neighbours share a task."""
    return int(trajectory_id.removeprefix(TRAINING_PREFIX))


def request_id(index: int) -> str:
    return f"{TRAINING_PREFIX}{index:09d}"


class Producer:
    """See the module's docstring. One per run; `start()` before use, `close()` after."""

    def __init__(
        self,
        service: RolloutService,
        ledger: Ledger,
        source: TaskSource,
        *,
        batch_trajectories: int,
        max_staleness: int,
        version: int,
        intake: Intake,
        max_lost_share: float = 0.75,
        over_admission: float = 0.0,
        rollouts_per_task: int = 1,
        on_progress: Callable[[int, int], None] = lambda done, wanted: None,
        listener: Listener | None = None,
    ) -> None:
        self._service, self._ledger, self._source = service, ledger, source
        self._batch, self._max_staleness = batch_trajectories, max_staleness
        self._over_admission = over_admission
        self._rollouts_per_task = rollouts_per_task
        self._on_progress = on_progress
        self._listener: Listener = listener or _Nobody()
        self._version = version
        self._in_flight: dict[str, int] = {}  # training id -> version at admission
        self._ready: dict[
            str, tuple[int, Trajectory]
        ] = {}  # id -> (version at admission, trajectory)
        self._evaluations: dict[str, Trajectory] = {}
        self._ended: Counter[Status] = Counter()
        self._tries = 0
        self._taken = 0
        self._next_index = 0
        self._leftover: Sequence[int] = ()
        self._intake = intake
        self._losses = LossLimit(max_share=max_lost_share, window=2 * batch_trajectories)
        self._collector = Collector("collector", service.collect, self._keep)
        self._changed = self._collector.changed

    def start(self) -> None:
        """Takes over what a stopped run left: finished attempts wait; unfinished ones start again,
        but only when the steps that were recorded are through, or they would be stale by then."""
        self._next_index = self._ledger.admitted()
        for trajectory in self._ledger.pending():
            self._ready[trajectory.id] = (trajectory.oldest_version, trajectory)
        self._listener.begin([trajectory for _, trajectory in self._ready.values()])
        self._leftover = [task_index(i) for i in self._ledger.unfinished()]
        self._collector.start()

    def take(self, step: int) -> list[Trajectory]:
        """The batch of this step, in task order. A step that was recorded before gets the same again.

        Raises RunError where too many attempts come to nothing, and whatever the collector raised.
        """
        recorded = self._ledger.batch(step)
        with self._changed:
            if recorded is None:
                self._submit(self._leftover)
                self._leftover = ()
                self._admit()
                self._collector.wait_for(self._complete)
                chosen = self._choose()
                self._ledger.record_batch(step, chosen)
                recorded = [self._ready.pop(i)[1] for i in chosen]
                self._shed()
            self._taken = len(recorded)
            return recorded

    def release(self, version: int) -> None:
        """The engines serve `version`: the last batch's slots are free, new tasks are admitted."""
        with self._changed:
            self._version = version
            self._taken = 0
            if self._max_staleness:
                self._admit()

    def ended(self) -> dict[str, float]:
        """How attempts have ended since this was last asked, trained or not; empty where none has."""
        with self._changed:
            counts, tries = self._ended, self._tries
            self._ended, self._tries = Counter(), 0
        attempts = counts.total()
        if not attempts:
            return {}
        shares = {
            f"attempts/{status.value}_share": counts[status] / attempts
            for status in (Status.INFRA_ERROR, Status.FAILED, Status.ABORTED)
        }
        return {
            "attempts/ended": float(attempts),
            "attempts/made_again": float(tries - attempts),
            **shares,
        }

    def evaluate(self, tasks: Sequence[Task], *, tag: str) -> list[Trajectory]:
        """Attempts at held-out tasks with the weights being served. They never train."""
        ids = [f"{EVALUATION_PREFIX}{tag}/{task.id}" for task in tasks]
        self._service.submit(
            [RolloutRequest(id=i, task=task) for i, task in zip(ids, tasks, strict=True)]
        )
        with self._changed:
            self._collector.wait_for(lambda: all(i in self._evaluations for i in ids))
            return [self._evaluations.pop(i) for i in ids]

    def close(self) -> None:
        """Stops collecting. Finished trajectories are in the store already."""
        self._collector.close()

    def _keep(self, finished: Sequence[Trajectory]) -> None:
        # A sync comes before the release that says so: engines may be one version ahead.
        newest = self._version + 1
        training = [
            self._intake.checked(t, version=newest)
            for t in finished
            if not t.id.startswith(EVALUATION_PREFIX)
        ]
        self._ledger.put(training)
        with self._changed:
            awaited = [t for t in training if t.id in self._in_flight]
            self._listener.begin([t for t in awaited if t.status.is_trainable])
            self._evaluations.update(
                {t.id: t for t in finished if t.id.startswith(EVALUATION_PREFIX)}
            )
            for trajectory in awaited:
                admitted_at = self._in_flight.pop(trajectory.id, None)
                if admitted_at is None:
                    continue  # asked for twice after a worker's restart; the first answer counts
                self._ended[trajectory.status] += 1
                self._tries += int(trajectory.info.get("tries", 1))
                if trajectory.status.is_trainable:
                    self._losses.note(trajectory, lost=False)
                    self._ready[trajectory.id] = (admitted_at, trajectory)
                else:
                    self._drop(trajectory)
            self._on_progress(len(self._ready), self._batch)

    def _drop(self, trajectory: Trajectory) -> None:
        """A failed attempt never trains: a fresh task takes its slot, unless too much is lost."""
        reason = str(trajectory.info.get("error", trajectory.status.value))
        self._ledger.drop(trajectory.id, f"{trajectory.status.value}: {reason}")
        if trajectory.status is not Status.ABORTED:
            self._losses.note(trajectory, lost=True)
        self._admit()

    def _shed(self) -> None:
        """What was admitted beyond the batch, and would be too old for the next one."""
        if not self._over_admission:
            return
        late = [i for i, admitted_at in self._in_flight.items() if self._due(admitted_at)]
        unused = [i for i, (admitted_at, _) in self._ready.items() if self._due(admitted_at)]
        for i in late:
            del self._in_flight[i]
        for i in unused:
            del self._ready[i]
        for i in (*late, *unused):
            self._ledger.drop(i, "over-admitted: others had filled its batch")
        self._listener.forget(unused)
        if late:
            self._service.cancel(late)

    def _admit(self) -> None:
        if self._taken and not self._max_staleness:
            return  # what began now would be too old for the next batch
        wanted = self._batch * (1 + self._max_staleness)
        slots = wanted + math.ceil(wanted * self._over_admission)
        free = slots - len(self._in_flight) - len(self._ready) - self._taken
        if free > 0:
            indices = range(self._next_index, self._next_index + free)
            self._next_index += free
            self._ledger.admit([request_id(i) for i in indices])
            self._submit(indices)

    def _submit(self, indices: Sequence[int]) -> None:
        requests = [
            RolloutRequest(
                id=request_id(i), task=self._source.train_task(i // self._rollouts_per_task)
            )
            for i in indices
        ]
        self._in_flight.update({r.id: self._version for r in requests})
        if requests:
            self._service.submit(requests)

    def _due(self, admitted_at: int) -> bool:
        return self._version - admitted_at >= self._max_staleness

    def _complete(self) -> bool:
        waiting_for_oldest = not self._over_admission and any(
            self._due(v) for v in self._in_flight.values()
        )
        if len(self._ready) + len(self._in_flight) < self._batch:
            self._admit()
        return len(self._ready) >= self._batch and not waiting_for_oldest

    def _choose(self) -> list[str]:
        by_age = sorted(self._ready, key=lambda i: (self._ready[i][0], task_index(i)))
        return sorted(by_age[: self._batch], key=task_index)
