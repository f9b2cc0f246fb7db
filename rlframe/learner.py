"""What a batch teaches: read it with both models, assign credit, update. The loop's middle, and `replay`'s.

    pi_old, V, ref <- one forward each, before any update                 (policy, critic)
    A, R           <- GAE over actions, through compaction and sub-agents (credit)
    critic, policy <- clipped updates, token-level                        (trainers)

Without a critic (`algorithm.estimator` other than gae) there is no V, and A compares rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlframe import bad_steps, batch, loss_weights, shared_packing, statistics
from rlframe.bad_steps import BadSteps
from rlframe.config.schema import PpoConfig
from rlframe.credit import Credit, CreditRules, assign_credit
from rlframe.distillation.learning import Teaching
from rlframe.distillation.signals import Taught
from rlframe.group_credit import assign_group_credit
from rlframe.interfaces import Pending, RoleTrainer
from rlframe.metrics import Metrics
from rlframe.planning import plan_rows
from rlframe.reference_kl import kl_rewards
from rlframe.types import BatchPlan, Float32Array, Trace, TrainRow, Trajectory


@dataclass(frozen=True, slots=True)
class Read:
    """What the models say about a batch before it trains: one array [T] a trace."""

    traces: list[Trace]
    old_logprobs: list[Float32Array]
    values: list[Float32Array]
    """0 without a critic."""
    ref_logprobs: list[Float32Array] | None
    taught: list[Taught] | None = None
    """By the teachers, where there are any."""
    shared_tokens: float = 0.0
    """Of all tokens, the share that the policy computed with another trace's."""


@dataclass(frozen=True, slots=True)
class Learner:
    """The models in training, and how they learn from a batch."""

    algorithm: PpoConfig
    policy: RoleTrainer
    critic: RoleTrainer | None
    max_tokens_per_micro_batch: int
    row_costs: Callable[[Sequence[int]], Sequence[float]]
    """The work of rows of so many tokens, by which the policy's ranks are balanced."""
    bad_steps: BadSteps
    seed: int
    critic_row_costs: Callable[[Sequence[int]], Sequence[float]] | None = None
    """And the critic's, where it is another model."""
    teaching: Teaching | None = None
    share_prefixes: bool = False
    """Rows that begin alike go into the same micro-batches, where that is computed once."""

    def learn(
        self, trajectories: Sequence[Trajectory], step: int, metrics: Metrics
    ) -> dict[str, float]:
        """One step's updates; returns what was measured. RunError where `bad_steps` says so."""
        with metrics.span("forward"):
            read = self._forward(trajectories)
        with metrics.span("credit"):
            rows, kept = self._credit(trajectories, read, step)
        reason = self._disagrees(read, step)
        with metrics.span("update"):
            updated = {} if reason else self._update(trajectories, rows, kept, step)
        reasons = [reason] if reason else bad_steps.update_reasons(updated)
        if reasons:
            worst = bad_steps.worst_traces(trajectories, read.old_logprobs)
            self.bad_steps.bad(step + 1, reasons, worst)
        else:
            self.bad_steps.good()
        measured = statistics.of_step(
            trajectories, rows, version=step, has_critic=self.critic is not None
        )
        if self.teaching is not None and read.taught is not None:
            measured |= self.teaching.measured(trajectories, read.old_logprobs, read.taught)
        return {
            **measured,
            "left_out/stale": kept.stale,
            "left_out/rejected": kept.rejected,
            "left_out/bad_step": float(bool(reason)),
            **({"batch/shared_tokens": read.shared_tokens} if self.share_prefixes else {}),
            **updated,
        }

    def divergence(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """How far the policy that sampled these is from their teachers: mean log ratio, by domain."""
        assert self.teaching is not None
        rows = batch.bare_rows(batch.flatten(trajectories))
        plan = self._plan(self.policy, rows)
        return self.teaching.divergence(trajectories, rows, self.policy, plan)

    def _forward(self, trajectories: Sequence[Trajectory]) -> Read:
        traces = batch.flatten(trajectories)
        rows = batch.bare_rows(traces)
        plan = self._plan(self.policy, rows)
        old_logprobs = self.policy.logprobs(rows, plan)
        values = self.critic and self.critic.values(rows, self._plan(self.critic, rows))
        reference = (
            self.policy.reference_logprobs(rows, plan) if self.algorithm.kl_coef > 0 else None
        )
        taught = None
        if self.teaching is not None:
            taught = self.teaching.read(trajectories, rows, self.policy, plan)
        return Read(
            traces,
            old_logprobs.result(),
            values.result() if values else [np.zeros(len(t), np.float32) for t in traces],
            reference.result() if reference else None,
            taught,
            shared_packing.shared_share([r.token_ids for r in rows], plan)
            if self.share_prefixes
            else 0.0,
        )

    def _credit(
        self, trajectories: Sequence[Trajectory], read: Read, step: int
    ) -> tuple[list[TrainRow], loss_weights.Kept]:
        assigned = self._assign(trajectories, read)
        rules = weight_rules(self.algorithm)
        kept = loss_weights.kept_actions(
            trajectories, assigned.loss_masks, read.old_logprobs, rules=rules, version=step
        )
        rows = batch.with_credit(
            batch.bare_rows(read.traces),
            assigned,
            old_logprobs=read.old_logprobs,
            old_values=read.values,
            ref_logprobs=read.ref_logprobs,
        )
        if self.teaching is not None and read.taught is not None:
            rows = self.teaching.taught_rows(rows, trajectories, read.taught)
        return rows, kept

    def _disagrees(self, read: Read, step: int) -> str:
        """Why this batch must not train; empty where engine and trainer compute the same model."""
        gap = statistics.logprob_gap(read.traces, read.old_logprobs, version=step)
        return bad_steps.gap_reason(gap, limit=self.algorithm.max_logprob_gap)

    def _assign(self, trajectories: Sequence[Trajectory], read: Read) -> Credit:
        teaching, taught = self.teaching, read.taught
        if teaching is None or taught is None:
            return self._estimate(trajectories, read, self._reference_rewards(read))
        added = self._reference_rewards(read)
        if teaching.in_reward:
            earned = teaching.penalties(trajectories, read.old_logprobs, taught)
            added = earned if added is None else [a + e for a, e in zip(added, earned, strict=True)]
        credit = self._estimate(teaching.rewarded(trajectories), read, added)
        return teaching.credited(credit, trajectories, read.old_logprobs, taught)

    def _estimate(
        self,
        trajectories: Sequence[Trajectory],
        read: Read,
        added: Sequence[Float32Array] | None,
    ) -> Credit:
        """`added`: rewards [T] of single tokens, one array a trace."""
        rules = credit_rules(self.algorithm)
        token_rewards = None if added is None else batch.unflatten(added, trajectories)
        if self.algorithm.estimator != "gae":
            return assign_group_credit(trajectories, rules=rules, token_rewards=token_rewards)
        values = batch.unflatten(read.values, trajectories)
        return assign_credit(trajectories, values, rules=rules, token_rewards=token_rewards)

    def _reference_rewards(self, read: Read) -> list[Float32Array] | None:
        algorithm = self.algorithm
        if read.ref_logprobs is None or algorithm.kl_in != "reward":
            return None
        return kl_rewards(
            read.old_logprobs,
            read.ref_logprobs,
            [trace.loss_mask for trace in read.traces],
            estimator=algorithm.kl_estimator,
            coef=algorithm.kl_coef,
        )

    def _update(
        self,
        trajectories: Sequence[Trajectory],
        rows: Sequence[TrainRow],
        kept: loss_weights.Kept,
        step: int,
    ) -> dict[str, float]:
        """The critic learns beside the policy; in warm-up steps alone."""
        algorithm = self.algorithm
        critic, policy = [], []
        if self.critic is not None:
            for indices in self._mini_batches(trajectories, step, algorithm.critic_mini_batches):
                critic.append(self._submit(self.critic, [rows[i] for i in indices], step))
        if self.critic is None or step >= algorithm.critic_warmup_steps:
            for indices in self._mini_batches(trajectories, step, algorithm.mini_batches):
                part = batch.weighted(
                    trajectories, rows, kept.masks, indices, weight_rules(algorithm)
                )
                policy.append(self._submit(self.policy, part, step))
        return {
            **statistics.mean_of("critic", [pending.result() for pending in critic]),
            **statistics.mean_of("policy", [pending.result() for pending in policy]),
        }

    def _mini_batches(
        self, trajectories: Sequence[Trajectory], step: int, count: int
    ) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, step])
        for _ in range(self.algorithm.epochs):
            yield from batch.mini_batches(trajectories, count, rng=rng)

    def _submit(
        self, role: RoleTrainer, rows: Sequence[TrainRow], step: int
    ) -> Pending[Mapping[str, float]]:
        return role.update(rows, self._plan(role, rows), step)

    def _plan(self, role: RoleTrainer, rows: Sequence[TrainRow]) -> BatchPlan:
        return plan_rows(
            rows,
            role.layout(),
            max_tokens=self.max_tokens_per_micro_batch,
            row_costs=(role is self.critic and self.critic_row_costs) or self.row_costs,
            share_prefixes=self.share_prefixes,
        )


def credit_rules(algorithm: PpoConfig) -> CreditRules:
    return CreditRules(
        gamma=algorithm.gamma,
        lambda_policy=algorithm.lambda_policy,
        lambda_critic=algorithm.lambda_critic,
        truncation=algorithm.truncation,
        whiten=algorithm.whiten_advantages,
        estimator=algorithm.estimator,
        lambda_length_alpha=algorithm.lambda_length_alpha,
        compaction=algorithm.compaction,
        sub_agent=algorithm.sub_agent,
    )


def weight_rules(algorithm: PpoConfig) -> loss_weights.WeightRules:
    return loss_weights.WeightRules(
        aggregation=algorithm.aggregation,
        trains=algorithm.trains,
        mask_older_than=algorithm.mask_older_than,
        reject_below=algorithm.reject_below,
        reject_above=algorithm.reject_above,
    )
