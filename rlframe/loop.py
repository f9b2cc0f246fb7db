"""The loop: critic-based PPO, synchronous, one step off or fully asynchronous, colocated or not.

Which of these it is, is the producer's capacity (`max_staleness`) and the cluster's placement; the
loop does not know. What a step does, in the order of the paper:

    trajectories  <- rollout with the weights of version s               (producer)
    pi_old, V     <- one forward each, before any update                 (policy, critic)
    A, R          <- GAE over actions, through compaction and sub-agents (credit)
    critic, policy <- clipped updates, token-level                       (trainers)
    engines       <- weights of version s + 1                            (sync)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlframe import batch, credit, packing, statistics
from rlframe.config.schema import PpoConfig
from rlframe.errors import RunError
from rlframe.interfaces import Pending, RoleTrainer, RolloutService
from rlframe.metrics import Metrics
from rlframe.producer import Producer
from rlframe.types import BatchPlan, Float32Array, Trace, TrainRow, Trajectory, WeightManifest


class Watcher(Protocol):
    """What happens around the steps: evaluation, checkpoints, the view (`rlframe.launch`)."""

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps are done and the engines serve that version."""
        ...


@dataclass(frozen=True, slots=True)
class Loop:
    """One PPO run between its first and its last step."""

    algorithm: PpoConfig
    policy: RoleTrainer
    critic: RoleTrainer
    service: RolloutService
    producer: Producer
    metrics: Metrics
    watcher: Watcher
    max_tokens_per_micro_batch: int
    publish: Callable[[int], WeightManifest]
    """The policy's weights as this version, where engines can take them."""
    seed: int

    def run(self, *, first_step: int, steps: int) -> None:
        """Raises RunError where the run can't go on; what is finished is in the store by then."""
        for step in range(first_step, steps):
            with self.metrics.span("rollout"):
                trajectories = self.producer.take(step)
            with self.metrics.span("forward"):
                traces, old_logprobs, values = self._forward(trajectories)
            with self.metrics.span("credit"):
                rows = self._credit(trajectories, traces, old_logprobs, values, step)
            with self.metrics.span("update"):
                updated = self._update(trajectories, rows, step)
            with self.metrics.span("sync"):
                synced = self._sync(step + 1)
            self.producer.release(step + 1)
            measured = statistics.of_step(trajectories, rows, version=step)
            ended = self.producer.ended()
            logged = self.metrics.log(step + 1, {**measured, **ended, **updated, **synced})
            self.watcher.after_step(step + 1, logged)

    def _forward(
        self, trajectories: Sequence[Trajectory]
    ) -> tuple[list[Trace], list[Float32Array], list[Float32Array]]:
        traces = batch.flatten(trajectories)
        rows = batch.bare_rows(traces)
        old_logprobs = self.policy.logprobs(rows, self._plan(self.policy, rows))
        values = self.critic.values(rows, self._plan(self.critic, rows))
        return traces, old_logprobs.result(), values.result()

    def _credit(
        self,
        trajectories: Sequence[Trajectory],
        traces: Sequence[Trace],
        old_logprobs: Sequence[Float32Array],
        values: Sequence[Float32Array],
        step: int,
    ) -> list[TrainRow]:
        gap = statistics.logprob_gap(traces, old_logprobs, version=step)
        if not gap.mean <= self.algorithm.max_logprob_gap:  # also where it is not a number
            raise RunError(
                f"step {step}: mean |train - rollout logprob| is {gap.mean:.3g}, above "
                f"algorithm.max_logprob_gap={self.algorithm.max_logprob_gap:g} (largest {gap.max:.3g}). The "
                "engine and the trainer do not compute the same model: check model.dtype, "
                "rollout.engine_args (quantisation, attention backend) and rollout.sampling."
            )
        assigned = credit.assign_credit(
            trajectories,
            batch.unflatten(values, trajectories),
            gamma=self.algorithm.gamma,
            lambda_policy=self.algorithm.lambda_policy,
            lambda_critic=self.algorithm.lambda_critic,
            truncation=self.algorithm.truncation,
            whiten=self.algorithm.whiten_advantages,
        )
        return batch.with_credit(
            batch.bare_rows(traces),
            assigned,
            old_logprobs=old_logprobs,
            old_values=values,
        )

    def _update(
        self, trajectories: Sequence[Trajectory], rows: Sequence[TrainRow], step: int
    ) -> dict[str, float]:
        """The critic learns beside the policy; in warm-up steps alone."""
        algorithm = self.algorithm
        warming_up = step < algorithm.critic_warmup_steps
        critic = self._submit_updates(
            self.critic, trajectories, rows, step, algorithm.critic_mini_batches
        )
        policy = (
            []
            if warming_up
            else self._submit_updates(self.policy, trajectories, rows, step, algorithm.mini_batches)
        )
        return {
            **statistics.mean_of("critic", [pending.result() for pending in critic]),
            **statistics.mean_of("policy", [pending.result() for pending in policy]),
        }

    def _submit_updates(
        self,
        role: RoleTrainer,
        trajectories: Sequence[Trajectory],
        rows: Sequence[TrainRow],
        step: int,
        count: int,
    ) -> list[Pending[Mapping[str, float]]]:
        rng = np.random.default_rng([self.seed, step])
        pending = []
        for _ in range(self.algorithm.epochs):
            for indices in batch.mini_batches(trajectories, count, rng=rng):
                part = [rows[i] for i in indices]
                pending.append(role.update(part, self._plan(role, part), step))
        return pending

    def _plan(self, role: RoleTrainer, rows: Sequence[TrainRow]) -> BatchPlan:
        layout = role.layout()
        return packing.plan(
            [len(row.token_ids) for row in rows],
            data_parallel=layout["data"],
            max_tokens=self.max_tokens_per_micro_batch,
        )

    def _sync(self, version: int) -> dict[str, float]:
        manifest = self.publish(version)
        return {f"sync/{name}": value for name, value in self.service.sync(manifest).items()}
