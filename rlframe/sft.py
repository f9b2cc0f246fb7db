"""Supervised fine-tuning: the same rows, packing and trainer as PPO, the loss on demonstrated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlframe.interfaces import RoleTrainer
from rlframe.loop import Watcher
from rlframe.metrics import Metrics, series
from rlframe.planning import plan_rows
from rlframe.types import BatchPlan, TrainRow

SMOOTHED_OVER = 3
"""Held-out losses whose mean decides about an early stop."""


def batch_indices(step: int, *, rows: int, batch: int, seed: int) -> list[int]:
    """Rows of this step: every row once an epoch, in an order that depends on the epoch and the seed.

    A function of its arguments alone, so that a resumed run takes the same batches.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    indices: list[int] = []
    for epoch in np.unique(positions // rows):
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        indices += order[positions[positions // rows == epoch] % rows].tolist()
    return indices


@dataclass(frozen=True, slots=True)
class SftLoop:
    """One SFT run between its first and its last step."""

    policy: RoleTrainer
    rows: Sequence[TrainRow]
    held_out: Sequence[TrainRow]
    metrics: Metrics
    watcher: Watcher
    batch_conversations: int
    max_tokens_per_micro_batch: int
    eval_every: int
    stop_below_loss: float
    seed: int
    share_prefixes: bool = False

    def run(self, *, first_step: int, steps: int) -> int:
        """Returns how many steps are done: fewer than `steps` where the held-out loss was low enough.

        Raises RunError where the run can't go on.
        """
        for step in range(first_step, steps):
            if self._low_enough():
                return step
            with self.metrics.span("update"):
                batch = [self.rows[i] for i in self._indices(step)]
                updated = dict(self._update(batch, step))
            if self._evaluates(step + 1, steps):
                with self.metrics.span("held_out"):
                    updated["held_out_loss"] = self._held_out_loss()
            updated["tokens"] = float(sum(len(r.token_ids) for r in batch))
            updated["actions"] = float(sum(r.loss_mask.sum() for r in batch))
            logged = self.metrics.log(step + 1, {f"sft/{k}": v for k, v in updated.items()})
            self.watcher.after_step(step + 1, logged)
        return steps

    def _low_enough(self) -> bool:
        """Of the latest held-out losses, also where a stopped run logged them: one alone is a matter of luck."""
        losses = [loss for _, loss in series(self.metrics.history, "sft/held_out_loss")]
        latest = losses[-SMOOTHED_OVER:]
        return len(latest) == SMOOTHED_OVER and sum(latest) / len(latest) < self.stop_below_loss

    def _indices(self, step: int) -> list[int]:
        return batch_indices(
            step, rows=len(self.rows), batch=self.batch_conversations, seed=self.seed
        )

    def _evaluates(self, step: int, steps: int) -> bool:
        due = self.eval_every and step % self.eval_every == 0
        return bool(self.held_out) and bool(due or step == steps)

    def _update(self, rows: Sequence[TrainRow], step: int) -> dict[str, float]:
        return dict(self.policy.update(rows, self._plan(rows), step).result())

    def _held_out_loss(self) -> float:
        """Mean -log p over the demonstrated tokens of the held-out conversations."""
        logprobs = self.policy.logprobs(self.held_out, self._plan(self.held_out)).result()
        chosen = [p[row.loss_mask] for p, row in zip(logprobs, self.held_out, strict=True)]
        return -float(np.concatenate(chosen).mean(dtype=np.float64))

    def _plan(self, rows: Sequence[TrainRow]) -> BatchPlan:
        return plan_rows(
            rows,
            self.policy.layout(),
            max_tokens=self.max_tokens_per_micro_batch,
            share_prefixes=self.share_prefixes,
        )
