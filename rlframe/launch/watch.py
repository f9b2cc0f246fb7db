"""What happens around the steps of a PPO run: held-out evaluation and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rlframe.checkpoints import Checkpoints
from rlframe.config.schema import RunConfig
from rlframe.errors import RunError
from rlframe.interfaces import RoleTrainer, TaskSource
from rlframe.metrics import HELD_OUT, Metrics
from rlframe.producer import Producer
from rlframe.statistics import rewards_by_domain
from rlframe.types import Trajectory


@dataclass(frozen=True, slots=True)
class PpoWatcher:
    """Implements `rlframe.loop.Watcher`."""

    config: RunConfig
    source: TaskSource
    producer: Producer
    metrics: Metrics
    checkpoints: Checkpoints
    policy: RoleTrainer
    critic: RoleTrainer | None
    measure: Callable[[Sequence[Trajectory]], Mapping[str, float]] = lambda attempts: {}
    """What else is told of held-out attempts."""

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        last = step == self.config.steps
        every = self.config.trainer.checkpoint_every
        if last or (every and step % every == 0):
            self.save(step)
        every = self.config.logging.eval_every
        if last or (every and step % every == 0):
            self.evaluate(step)

    def save(self, step: int) -> None:
        with self.metrics.span("checkpoint"):
            roles = {"policy": self.policy}
            if self.critic is not None:
                roles["critic"] = self.critic
            self.checkpoints.save(
                step,
                {name: partial(self._save_role, role, step) for name, role in roles.items()},
            )

    def _save_role(self, role: RoleTrainer, step: int, directory: str) -> None:
        role.save(directory, step).result()

    def evaluate(self, step: int) -> None:
        """Mean held-out reward with the weights being served, once a step, also over resumes.

        Sampled as in training. Attempts that our side lost don't count; RunError if all were lost.
        """
        if self.metrics.logged(HELD_OUT, step):
            return
        tasks = self.source.held_out_tasks()
        with self.metrics.span("held_out"):
            attempts = self.producer.evaluate(tasks, tag=str(step))
        counted = [t for t in attempts if t.status.is_trainable]
        if not counted:
            reason = attempts[0].info.get("error", attempts[0].status.value) if attempts else "none"
            raise RunError(f"no held-out attempt could be scored; the first: {reason}")
        values = {f"held_out/{k}": v for k, v in rewards_by_domain(counted).items()}
        values |= self.measure(counted)
        values["evaluation/lost"] = float(len(attempts) - len(counted))
        self.metrics.log(step, values, event=HELD_OUT)
