"""Value pretraining: the critic alone, offline, on the returns of stored trajectories.

    returns  <- Monte Carlo, through compaction and sub-agents      (value_targets)
    critic   <- the value loss of PPO, token-level                  (trainer)
    held out <- explained variance and bias, on tasks that are in no batch

The same rows, packing, loss and ranks as in a PPO step, without engines and without a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlframe import value_targets
from rlframe.config.schema import ValueConfig
from rlframe.diagnosis import of_values
from rlframe.errors import RunError
from rlframe.interfaces import RoleTrainer
from rlframe.loop import Watcher
from rlframe.metrics import VALUES, Metrics, series
from rlframe.planning import plan_rows
from rlframe.sft import batch_indices
from rlframe.statistics import explained_variance
from rlframe.stored_trajectories import StoredTrajectories
from rlframe.types import BatchPlan, Float32Array, TrainRow, Trajectory


@dataclass(frozen=True, slots=True)
class ValueLoop:
    """One run of value pretraining between its first and its last step."""

    critic: RoleTrainer
    stored: StoredTrajectories
    training: Sequence[int]
    held_out: Sequence[int]
    """Indices into `stored`."""
    metrics: Metrics
    watcher: Watcher
    keep_best: Callable[[], None]
    """The critic's weights are the best so far."""
    on_progress: Callable[[int, int], None]
    """(held-out trajectories that were looked at, all of them)."""
    algorithm: ValueConfig
    max_tokens_per_micro_batch: int
    row_costs: Callable[[Sequence[int]], Sequence[float]]
    eval_every: int
    seed: int
    share_prefixes: bool = False

    def run(self, *, first_step: int, steps: int) -> int:
        """Returns how many steps are done: fewer than `steps` where the held-out error fell no more.

        Raises RunError where the run can't go on.
        """
        if first_step == 0:
            self._evaluate(0)
        for step in range(first_step, steps):
            if self._stopped_falling():
                return step
            with self.metrics.span("load"):
                trajectories = self.stored.load(self._indices(step))
                rows = value_targets.value_rows(trajectories, self.algorithm)
            with self.metrics.span("update"):
                updated = self._update(rows, step)
            updated["tokens"] = float(sum(len(row.token_ids) for row in rows))
            updated["actions"] = float(sum(row.loss_mask.sum() for row in rows))
            logged = self.metrics.log(step + 1, {f"value/{k}": v for k, v in updated.items()})
            if self._evaluates(step + 1, steps):
                self._evaluate(step + 1)
            self.watcher.after_step(step + 1, logged)
        return steps

    def _indices(self, step: int) -> list[int]:
        batch = min(self.algorithm.batch_trajectories, len(self.training))
        chosen = batch_indices(step, rows=len(self.training), batch=batch, seed=self.seed)
        return [self.training[i] for i in chosen]

    def _update(self, rows: Sequence[TrainRow], step: int) -> dict[str, float]:
        """One optimizer step; a batch of which nothing trains (truncation=mask) is passed over."""
        if not any(row.loss_mask.any() for row in rows):
            return {"skipped": 1.0}
        updated = dict(self.critic.update(rows, self._plan(rows), step).result())
        if updated["skipped"]:
            raise RunError(
                f"step {step + 1}: the critic's loss or gradients are not finite, or above "
                "trainer.critic.grad_norm_limit: lower trainer.critic.lr"
            )
        return updated

    def _evaluates(self, step: int, steps: int) -> bool:
        return step == steps or bool(self.eval_every and step % self.eval_every == 0)

    def _evaluate(self, step: int) -> None:
        """On the held-out tasks; the weights are kept if their error is the lowest so far."""
        if not self.held_out or self.metrics.logged(VALUES, step):
            return
        with self.metrics.span("held_out"):
            found = self._measured()
        errors = self._errors()
        if not errors or found["value/squared_error"] < min(errors):
            with self.metrics.span("export"):
                self.keep_best()
        self.metrics.log(step, found, event=VALUES)

    def _measured(self) -> dict[str, float]:
        trajectories: list[Trajectory] = []
        rows: list[TrainRow] = []
        values: list[Float32Array] = []
        for part in self._held_out_parts():
            own = value_targets.value_rows(part, self.algorithm)
            values += self.critic.values(own, self._plan(own)).result()
            trajectories, rows = trajectories + part, rows + own
            self.on_progress(len(trajectories), len(self.held_out))
        predicted = np.concatenate([v[r.loss_mask] for v, r in zip(values, rows, strict=True)])
        returns = np.concatenate([row.returns[row.loss_mask] for row in rows])
        error = predicted.astype(np.float64) - returns
        by_place = of_values(trajectories, rows, values)
        return {
            "value/explained_variance": explained_variance(predicted, returns),
            "value/bias": float(error.mean()),
            "value/squared_error": float(np.square(error).mean()),
            "value/return_mean": float(returns.mean(dtype=np.float64)),
            **{f"value/{name}": value for name, value in by_place.items()},
        }

    def _held_out_parts(self) -> Iterator[list[Trajectory]]:
        size = self.algorithm.batch_trajectories
        for start in range(0, len(self.held_out), size):
            yield self.stored.load(self.held_out[start : start + size])

    def _errors(self) -> list[float]:
        """Of all evaluations, also of a run that was stopped and goes on."""
        found = series(self.metrics.history, "value/squared_error", event=VALUES)
        return [error for _, error in found]

    def _stopped_falling(self) -> bool:
        errors, patience = self._errors(), self.algorithm.patience
        return bool(patience and errors) and len(errors) - 1 - int(np.argmin(errors)) >= patience

    def _plan(self, rows: Sequence[TrainRow]) -> BatchPlan:
        return plan_rows(
            rows,
            self.critic.layout(),
            max_tokens=self.max_tokens_per_micro_batch,
            row_costs=self.row_costs,
            share_prefixes=self.share_prefixes,
        )
