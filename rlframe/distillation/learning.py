"""What on-policy distillation changes in a step of learning; the rest of it is PPO's (`rlframe.learner`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from rlframe import batch
from rlframe.config.schema import OpdConfig
from rlframe.credit import Credit
from rlframe.distillation import signals
from rlframe.distillation.signals import Taught
from rlframe.interfaces import RoleTrainer
from rlframe.types import BatchPlan, BoolArray, Float32Array, TrainRow, Trajectory


class ScoreSource(Protocol):
    """`rlframe.distillation.scoring.Scoring`, or who only names the teachers whose weights the policy's ranks hold."""

    def scores(self, trajectories: Sequence[Trajectory]) -> list[Taught]:
        """One a trace, in the order of `batch.flatten`."""
        ...

    def metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Teaching:
    """The teachers of a run, and what is learnt from them."""

    algorithm: OpdConfig
    source: ScoreSource
    indices: Mapping[str, int] = field(default_factory=dict)
    """Of the teachers on the policy's ranks, by name; empty: they are on engines."""

    def read(
        self,
        trajectories: Sequence[Trajectory],
        rows: Sequence[TrainRow],
        policy: RoleTrainer,
        plan: BatchPlan,
    ) -> list[Taught]:
        """One a trace. The ranks' teachers read for the sampled objective only: a divergence reads them itself."""
        taught = self.source.scores(trajectories)
        if not self.indices or self.algorithm.objective != "sampled":
            return taught
        return self._by_ranks(taught, rows, policy, plan)

    def divergence(
        self,
        trajectories: Sequence[Trajectory],
        rows: Sequence[TrainRow],
        policy: RoleTrainer,
        plan: BatchPlan,
    ) -> dict[str, float]:
        """Of the policy that sampled these, by domain."""
        taught = self.source.scores(trajectories)
        if self.indices:
            taught = self._by_ranks(taught, rows, policy, plan)
        sampled = [row.rollout_logprobs for row in rows]
        ratios = self.ratios(sampled, taught, [row.loss_mask for row in rows])
        by_domain = signals.divergence_by_domain(trajectories, ratios, taught)
        return {f"teacher_kl/{name}": value for name, value in by_domain.items()}

    def _by_ranks(
        self,
        taught: Sequence[Taught],
        rows: Sequence[TrainRow],
        policy: RoleTrainer,
        plan: BatchPlan,
    ) -> list[Taught]:
        indexed = self.indexed(rows, taught)
        found = policy.teacher_logprobs(indexed, plan).result()
        return [replace(t, logprobs=p) for t, p in zip(taught, found, strict=True)]

    def indexed(self, rows: Sequence[TrainRow], taught: Sequence[Taught]) -> list[TrainRow]:
        """Each row with the number of its teacher."""
        return [
            replace(
                row, teacher_index=np.full(len(row.token_ids), self.indices[t.teacher], np.int32)
            )
            for row, t in zip(rows, taught, strict=True)
        ]

    def rewarded(self, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """As they are, or without the task's rewards where only the teachers count."""
        if self.algorithm.task_reward:
            return trajectories
        return [replace(trajectory, rewards=()) for trajectory in trajectories]

    def ratios(
        self, old: Sequence[Float32Array], taught: Sequence[Taught], masks: Sequence[BoolArray]
    ) -> list[Float32Array]:
        return signals.log_ratios(old, taught, masks)

    def penalties(
        self,
        trajectories: Sequence[Trajectory],
        old: Sequence[Float32Array],
        taught: Sequence[Taught],
    ) -> list[Float32Array]:
        """[T] a trace: what each action earns for its distance from the teacher."""
        masks = [trace.loss_mask for trace in batch.flatten(trajectories)]
        return signals.penalties(
            self.ratios(old, taught, masks),
            signals.weights_of(trajectories, self.algorithm.domain_weights),
            coef=self.algorithm.distill_coef,
        )

    @property
    def in_reward(self) -> bool:
        return self.algorithm.objective == "sampled" and self.algorithm.distill_in == "reward"

    def credited(
        self,
        credit: Credit,
        trajectories: Sequence[Trajectory],
        old: Sequence[Float32Array],
        taught: Sequence[Taught],
    ) -> Credit:
        if self.algorithm.objective == "sampled" and not self.in_reward:
            earned = self.penalties(trajectories, old, taught)
            credit = signals.with_penalties(credit, earned)
        return signals.without_failures(credit, taught)

    def taught_rows(
        self,
        rows: Sequence[TrainRow],
        trajectories: Sequence[Trajectory],
        taught: Sequence[Taught],
    ) -> list[TrainRow]:
        if self.algorithm.objective == "sampled":
            return list(rows)
        weights = signals.weights_of(trajectories, self.algorithm.domain_weights)
        return signals.taught_rows(rows, taught, weights, indices=self.indices)

    def measured(
        self,
        trajectories: Sequence[Trajectory],
        old: Sequence[Float32Array],
        taught: Sequence[Taught],
    ) -> dict[str, float]:
        masks = [trace.loss_mask for trace in batch.flatten(trajectories)]
        by_domain = signals.divergence_by_domain(
            trajectories, self.ratios(old, taught, masks), taught
        )
        failed = sum(bool(t.error) for t in taught)
        return {
            **{f"teacher_kl/{name}": value for name, value in by_domain.items()},
            "teachers/not_scored": float(failed),
            **{f"teachers/{name}": value for name, value in self.source.metrics().items()},
        }
