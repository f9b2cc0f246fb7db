"""Credit without a critic: a rollout's reward against those of other rollouts of its task.

The levels are task -> rollouts -> traces. A baseline is over the *rollouts* of a task (those of the batch
with its `task_id`), however many traces each has; every action of all of a rollout's traces then gets
the rollout's advantage.

grpo         (R - mean) / (deviation + 1e-6) of the task's rollouts (Shao et al., arXiv 2402.03300, eq. 4)
rloo         R - mean of the task's *other* rollouts (Ahmadian et al., arXiv 2402.14740)
reinforce_pp the discounted rewards from the action on, whitened over the batch (Hu, arXiv 2501.03262)

A rollout that is its task's only one has advantage 0 under the first two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlframe.credit import Credit, CreditRules, assign_credit
from rlframe.types import BoolArray, Float32Array, Trajectory

EPSILON = 1e-6


def assign_group_credit(
    trajectories: Sequence[Trajectory],
    *,
    rules: CreditRules,
    token_rewards: Sequence[Sequence[Float32Array]] | None = None,
) -> Credit:
    """By `rules.estimator`. Returns are 0: there is no critic to learn them."""
    zeros = [[np.zeros(len(trace), np.float32) for trace in t.traces] for t in trajectories]
    if rules.estimator == "reinforce_pp":
        sums = replace(rules, lambda_policy=1.0, lambda_critic=1.0, lambda_length_alpha=0.0)
        found = assign_credit(
            trajectories, zeros, rules=replace(sums, whiten=True), token_rewards=token_rewards
        )
        return replace(found, returns=[np.zeros_like(a) for a in found.advantages])
    amounts = advantages_of_rollouts(trajectories, rules.estimator, token_rewards)
    masks: list[BoolArray] = []
    advantages: list[Float32Array] = []
    for trajectory, amount in zip(trajectories, amounts, strict=True):
        left_out = rules.truncation == "mask" and trajectory.status.is_truncated
        for trace in trajectory.traces:
            mask = np.zeros_like(trace.loss_mask) if left_out else trace.loss_mask
            masks.append(mask)
            advantages.append(np.where(mask, np.float32(amount), np.float32(0.0)))
    return Credit(advantages, [np.zeros_like(a) for a in advantages], masks)


def advantages_of_rollouts(
    trajectories: Sequence[Trajectory],
    estimator: str,
    token_rewards: Sequence[Sequence[Float32Array]] | None = None,
) -> list[float]:
    """One a trajectory."""
    rewards = [t.reward for t in trajectories]
    if token_rewards is not None:
        for index, (trajectory, own) in enumerate(zip(trajectories, token_rewards, strict=True)):
            for trace, array in zip(trajectory.traces, own, strict=True):
                rewards[index] += float(array[trace.loss_mask].sum(dtype=np.float64))
    groups: dict[str, list[int]] = defaultdict(list)
    for index, trajectory in enumerate(trajectories):
        groups[trajectory.task_id].append(index)
    advantages = [0.0] * len(trajectories)
    for members in groups.values():
        if len(members) < 2:
            continue
        own_rewards = np.array([rewards[i] for i in members])
        centred = own_rewards - own_rewards.mean()
        if estimator == "rloo":
            scaled = centred * (len(members) / (len(members) - 1))
        else:
            scaled = centred / (own_rewards.std() + EPSILON)
        for i, amount in zip(members, scaled.tolist(), strict=True):
            advantages[i] = amount
    return advantages
