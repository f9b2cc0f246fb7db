"""What happens around the steps of a PPO run: held-out evaluation and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rlframe.background_evaluation import BackgroundEvaluation
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
    background: BackgroundEvaluation | None = None
    """Given: held-out attempts run beside the steps, on engines of their own."""
    warn: Callable[[str], None] = lambda text: None

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        last = step == self.config.steps
        every = self.config.trainer.checkpoint_every
        if last or (every and step % every == 0):
            self.save(step)
        self._log_ended(wait=last)
        every = self.config.logging.eval_every
        if last or (every and step % every == 0):
            self.evaluate(step)

    def finish(self) -> None:
        """After the last step: until what is under way in the background has ended."""
        self._log_ended(wait=True)

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
        """Mean held-out reward with the weights of this step, once a step, also over resumes; in the
        background it is only begun here, and logged after the step in which it has ended.

        Sampled as in training. Attempts that our side lost don't count; RunError if all were lost.
        """
        if self.metrics.logged(HELD_OUT, step):
            return
        with self.metrics.span("held_out"):
            if self.background is None:
                tasks = self.source.held_out_tasks()
                attempts = self.producer.evaluate(tasks, tag=str(step))
            elif self.background.begin(step):
                return
            else:
                self.warn(
                    f"held-out evaluation of step {step} is left out: that of step "
                    f"{self.background.under_way} is still under way (rollout.eval_engines, env.held_out)"
                )
                return
        self._log(step, attempts)

    def _log_ended(self, *, wait: bool) -> None:
        """The background's evaluation, if one has ended; `wait`: if one is under way, until it has."""
        if self.background is None:
            return
        with self.metrics.span("held_out"):
            ended = self.background.ended(wait=wait)
        if ended is not None:
            self._log(ended.version, ended.attempts, strangers=ended.strangers)

    def _log(self, step: int, attempts: Sequence[Trajectory], *, strangers: int = 0) -> None:
        counted = [t for t in attempts if t.status.is_trainable]
        if not counted:
            reason = attempts[0].info.get("error", attempts[0].status.value) if attempts else "none"
            raise RunError(f"no held-out attempt could be scored; the first: {reason}")
        values = {f"held_out/{k}": v for k, v in rewards_by_domain(counted).items()}
        values |= self.measure(counted)
        values["evaluation/lost"] = float(len(attempts) - len(counted))
        if self.background is not None:
            values["evaluation/strangers"] = float(strangers)
        self.metrics.log(step, values, event=HELD_OUT)
