"""Held-out attempts beside the training ones: on engines of their own, pinned to one weight version.

    begin(v)          the engines get version v and the attempts start; the loop goes on to v + 1, v + 2, ...
    collector thread  consumes service.collect(); produces finished attempts, in the store first
    ended()           the evaluation, once its last attempt has ended; unblocked by the collector

Its engines get no sync until their attempts have ended, so every token of an evaluation is of one version.
That is not taken on trust: an attempt with a token of another version does not count, and is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlframe.collector import Collector
from rlframe.interfaces import RolloutRequest, RolloutService
from rlframe.types import Task, Trajectory, WeightManifest


class Ledger(Protocol):
    """What is needed of the store (`rlframe.store`)."""

    def put(self, trajectories: Sequence[Trajectory]) -> None: ...


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation that has ended."""

    version: int
    attempts: list[Trajectory]
    """Every token of these is of `version`."""
    strangers: int
    """Attempts that had tokens of another version, and are left out."""


class BackgroundEvaluation:
    """See the module's docstring. `begin` and `ended` belong to the loop's thread."""

    def __init__(
        self,
        service: RolloutService,
        ledger: Ledger,
        tasks: Sequence[Task],
        publish: Callable[[int], WeightManifest],
        *,
        known: Collection[str] = (),
    ) -> None:
        """`publish`: weights of a version, which stay as they are until it is called again. `known`: ids
        that the ledger has from before a restart."""
        self._service, self._ledger, self._publish = service, ledger, publish
        self._tasks, self._known = tasks, set(known)
        self._version = -1
        self._waiting: set[str] = set()
        self._finished: list[Trajectory] = []
        self._collector = Collector("evaluation-collector", service.collect, self._keep)
        self._changed = self._collector.changed

    def start(self) -> None:
        self._collector.start()

    @property
    def under_way(self) -> int | None:
        """The version whose evaluation has not been handed out yet."""
        with self._changed:
            return self._version if self._waiting or self._finished else None

    def begin(self, version: int) -> bool:
        """False, and nothing happens, where the evaluation before has not been handed out by `ended`."""
        if self.under_way is not None:
            return False
        self._service.sync(self._publish(version))
        requests = [RolloutRequest(id=self._new_id(version, t), task=t) for t in self._tasks]
        with self._changed:
            self._version = version
            self._waiting = {request.id for request in requests}
        self._service.submit(requests)
        return True

    def ended(self, *, wait: bool = False) -> Evaluated | None:
        """None where there is none, or it is still under way. Raises what the collector raised."""
        with self._changed:
            if wait:
                self._collector.wait_for(lambda: not self._waiting)
            self._collector.check()
            if self._waiting or not self._finished:
                return None
            finished, self._finished = self._finished, []
        version = self._version
        own = [t for t in finished if is_of(t, version)]
        return Evaluated(version, own, strangers=len(finished) - len(own))

    def close(self) -> None:
        """Stops collecting; what has ended is in the store."""
        self._collector.close()

    def _keep(self, finished: Sequence[Trajectory]) -> None:
        self._ledger.put(finished)
        with self._changed:
            self._finished += [t for t in finished if t.id in self._waiting]
            self._waiting -= {t.id for t in finished}

    def _new_id(self, version: int, task: Task) -> str:
        """One that the ledger does not have: after a restart a version may be evaluated again."""
        first = attempt_id = f"eval/{version}/{task.id}"
        again = 0
        while attempt_id in self._known:
            again += 1
            attempt_id = f"{first}+{again}"
        self._known.add(attempt_id)
        return attempt_id


def is_of(trajectory: Trajectory, version: int) -> bool:
    """Every token that the policy sampled is of this version."""
    return all((t.versions[t.loss_mask] == version).all() for t in trajectory.traces)
