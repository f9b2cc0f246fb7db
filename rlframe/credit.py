"""Credit: rewards and values to per-token advantages and returns, by GAE over actions only.

Time steps are actions (sampled tokens that train); prompts, templates and tool results are context.
delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1} (Schulman et al., arXiv
1506.02438), where

- a chain runs through `continues` links: after the last action of sub-trace k the next state is that
  of the first action of sub-trace k + 1, the compacted context;
- a reward counts for the last action of its chain at or before its position (before the first action:
  for the first);
- the last action of a sub-agent's chain is followed by the parent's state at the join: its value, for
  the return too, is the value at the first action of the parent's chain at or after `join_position`,
  0 if there is none;
- at the end V is 0, or by `truncation` for a trajectory that limits cut off: `terminal` 0, `bootstrap`
  the last value, `mask`: none of its tokens trains.

- `compaction = terminal` makes each sub-trace a chain of its own that ends with the trajectory's whole
  reward, `sub_agent = terminal` each sub-agent's chain; they are there to compare with.

Two lambdas: the policy's advantages, and the critic's targets V + A (decoupled GAE; VAPO, arXiv
2504.05118, which also has the policy's 1 - 1 / (alpha T) for a chain of T actions). A penalty on single
tokens (`token_rewards`: a KL in the reward) is part of r_t for both, so the targets agree with it.
Without a critic (`rlframe.group_credit`) every V is 0.

V_t stands at index t of a trace's values: the value of the state *before* token t.

All actions of a block of trajectories are one flat array, and the recursion is a compiled loop over it
(`rlframe.credit_scan`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlframe.chains import Actions, Float64Array, IntArray
from rlframe.types import BoolArray, Float32Array, Trajectory

BLOCK_TOKENS = 1 << 20
"""Trajectories are worked on in blocks of so many tokens, which bounds what this takes in memory."""


@dataclass(frozen=True, slots=True)
class Credit:
    """One array a trace, in the order of `batch.flatten`."""

    advantages: list[Float32Array]
    """0 on tokens that do not train."""
    returns: list[Float32Array]
    """0 on tokens that do not train."""
    loss_masks: list[BoolArray]
    """The traces' own, but all false for trajectories that `truncation = mask` leaves out."""


@dataclass(frozen=True, slots=True)
class CreditRules:
    """The knobs of `PpoConfig` that credit depends on."""

    gamma: float
    lambda_policy: float
    lambda_critic: float
    truncation: str
    whiten: bool
    estimator: str = "gae"
    lambda_length_alpha: float = 0.0
    compaction: str = "chain"
    sub_agent: str = "join"


def assign_credit(
    trajectories: Sequence[Trajectory],
    values: Sequence[Sequence[Float32Array]],
    *,
    rules: CreditRules,
    token_rewards: Sequence[Sequence[Float32Array]] | None = None,
) -> Credit:
    """`values[i][k]` belongs to trace k of trajectory i, [T]; and so do `token_rewards`, which count at
    actions only."""
    blocks: list[Actions] = []
    advantages: list[Float32Array] = []
    returns: list[Float32Array] = []
    for part in _blocks(trajectories):
        actions = Actions.of(
            trajectories[part],
            values[part],
            masks_truncated=rules.truncation == "mask",
            splits_compaction=rules.compaction == "terminal",
            splits_sub_agents=rules.sub_agent == "terminal",
        )
        penalties = token_rewards[part] if token_rewards is not None else None
        block_advantages, block_returns = _gae(actions, rules, penalties)
        advantages.append(block_advantages)
        returns += actions.split(block_returns)
        blocks.append(actions)
    if rules.whiten:
        whiten(advantages, [actions.positions for actions in blocks])
    whole = zip(blocks, advantages, strict=True)
    return Credit(
        advantages=[array for actions, tokens in whole for array in actions.split(tokens)],
        returns=returns,
        loss_masks=[mask for actions in blocks for mask in actions.masks()],
    )


def _gae(
    actions: Actions,
    rules: CreditRules,
    token_rewards: Sequence[Sequence[Float32Array]] | None,
) -> tuple[Float32Array, Float32Array]:
    """[tokens] the policy's advantages, and the critic's targets; 0 between the actions."""
    from rlframe.credit_scan import scan

    rewards, ends = actions.rewards(), actions.chain_ends
    if token_rewards is not None:
        rewards += actions.gather([array for own in token_rewards for array in own])
    advantages, returns = np.zeros((2, len(actions.loss_mask)), np.float32)
    scan(
        actions.values,
        actions.positions,
        rewards,
        ends,
        actions.end_values(bootstraps=rules.truncation == "bootstrap"),
        rules.gamma,
        _policy_lambdas(np.diff(ends, prepend=0), rules),
        rules.lambda_critic,
        advantages,
        returns,
    )
    return advantages, returns


def _policy_lambdas(lengths: IntArray, rules: CreditRules) -> Float64Array:
    """[C] of each chain, which has so many actions T: 1 - 1 / (alpha T), at least 0, where alpha is set."""
    if not rules.lambda_length_alpha:
        return np.full(len(lengths), rules.lambda_policy)
    adaptive = 1.0 - 1.0 / (rules.lambda_length_alpha * lengths.astype(np.float64))
    return np.maximum(adaptive, 0.0)


def whiten(parts: Sequence[Float32Array], positions: Sequence[IntArray]) -> None:
    """In place: zero mean and unit deviation of what stands at the positions of all parts together."""
    chosen = [part[p].astype(np.float64) for part, p in zip(parts, positions, strict=True)]
    count = sum(amounts.size for amounts in chosen)
    if not count:
        return
    mean = sum(float(amounts.sum()) for amounts in chosen) / count
    variance = sum(float(np.square(amounts - mean).sum()) for amounts in chosen) / count
    scale = 1.0 / (np.sqrt(variance) + 1e-8)
    for part, places, amounts in zip(parts, positions, chosen, strict=True):
        part[places] = (amounts - mean) * scale


def _blocks(trajectories: Sequence[Trajectory]) -> Iterator[slice]:
    """Whole trajectories, BLOCK_TOKENS and what the last one exceeds them by."""
    start, tokens = 0, 0
    for index, trajectory in enumerate(trajectories):
        tokens += sum(len(trace) for trace in trajectory.traces)
        if tokens >= BLOCK_TOKENS or index == len(trajectories) - 1:
            yield slice(start, index + 1)
            start, tokens = index + 1, 0
