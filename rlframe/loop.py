"""The loop: critic-based PPO, synchronous, one step off or fully asynchronous, colocated or not.

Which of these it is, is the producer's capacity (`max_staleness`) and the cluster's placement; the
loop does not know. What a step does, in the order of the paper:

    trajectories <- rollout with the weights of version s         (producer)
    weights      <- pi_old and V, credit, clipped updates         (learner)
    engines      <- weights of version s + 1                      (sync)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rlframe.interfaces import RolloutService
from rlframe.learner import Learner
from rlframe.metrics import Metrics
from rlframe.producer import Producer
from rlframe.types import WeightManifest


class Watcher(Protocol):
    """What happens around the steps: evaluation, checkpoints, the view (`rlframe.launch`)."""

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps are done and the engines serve that version."""
        ...


@dataclass(frozen=True, slots=True)
class Loop:
    """One PPO run between its first and its last step."""

    learner: Learner
    service: RolloutService
    producer: Producer
    metrics: Metrics
    watcher: Watcher
    publish: Callable[[int], WeightManifest]
    """The policy's weights as this version, where engines can take them."""

    def run(self, *, first_step: int, steps: int) -> None:
        """Raises RunError where the run can't go on; what is finished is in the store by then."""
        for step in range(first_step, steps):
            with self.metrics.span("rollout"):
                trajectories = self.producer.take(step)
            learned = self.learner.learn(trajectories, step, self.metrics)
            with self.metrics.span("sync"):
                synced = self._sync(step + 1)
            self.producer.release(step + 1)
            logged = self.metrics.log(step + 1, {**learned, **self.producer.ended(), **synced})
            self.watcher.after_step(step + 1, logged)

    def _sync(self, version: int) -> dict[str, float]:
        manifest = self.publish(version)
        return {f"sync/{name}": value for name, value in self.service.sync(manifest).items()}
