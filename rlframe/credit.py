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

All actions of a block of trajectories are one flat array; there is no Python loop over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from rlframe.chains import Actions, Float64Array, IntArray
from rlframe.types import BoolArray, Float32Array, Trajectory

BLOCK_TOKENS = 1 << 15
"""Trajectories are worked on in blocks of so many tokens, which stay in a core's cache."""
LOG_NOTHING = -60.0
"""log of what float64 does not notice beside 1."""


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
    policy: list[Float64Array] = []
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
        advantages, targets = _gae(actions, rules, penalties)
        returns += actions.scatter(targets)
        policy.append(advantages)
        blocks.append(actions)
    if rules.whiten:
        policy = whitened(policy)
    return Credit(
        advantages=[
            a for b, amounts in zip(blocks, policy, strict=True) for a in b.scatter(amounts)
        ],
        returns=returns,
        loss_masks=[mask for actions in blocks for mask in actions.masks()],
    )


def _gae(
    actions: Actions,
    rules: CreditRules,
    token_rewards: Sequence[Sequence[Float32Array]] | None,
) -> tuple[Float64Array, Float64Array]:
    """[A] the policy's advantages, and the critic's targets."""
    ends = actions.chain_ends
    following = np.append(actions.values[1:], 0.0)[: len(actions.values)]
    following[ends - 1] = actions.end_values(bootstraps=rules.truncation == "bootstrap")
    rewards = actions.rewards()
    if token_rewards is not None:
        rewards += actions.gather([array for own in token_rewards for array in own])
    deltas = following  # in place: memory is what this waits for
    if rules.gamma != 1.0:
        deltas *= rules.gamma
    deltas -= actions.values
    deltas += rewards
    critic = discounted_sums(deltas, ends, rules.gamma * rules.lambda_critic)
    if rules.lambda_length_alpha:
        policy = _length_adaptive(deltas, ends, rules)
    elif rules.lambda_policy == rules.lambda_critic:
        policy = critic
    else:
        policy = discounted_sums(deltas, ends, rules.gamma * rules.lambda_policy)
    return policy, critic + actions.values


def _length_adaptive(deltas: Float64Array, ends: IntArray, rules: CreditRules) -> Float64Array:
    """lambda = 1 - 1 / (alpha T), at least 0, by the chain's number of actions T."""
    sums = np.empty_like(deltas)
    start = 0
    for end in ends.tolist():
        factor = rules.gamma * max(0.0, 1.0 - 1.0 / (rules.lambda_length_alpha * (end - start)))
        sums[start:end] = lfilter([1.0], [1.0, -factor], deltas[start:end][::-1])[::-1]
        start = end
    return sums


def discounted_sums(deltas: Float64Array, ends: IntArray, factor: float) -> Float64Array:
    """[A] sum of factor^k delta_{t+k} up to the end of t's segment; `ends`: [C] one past each last.

    One recursion runs over all segments from the back; what it carried into a segment from those behind
    is then subtracted where discounting has left anything of it (exact to float64 round-off).
    """
    if not len(ends):
        return np.zeros_like(deltas)
    starts = np.append(0, ends[:-1])
    sums: Float64Array
    if factor == 1.0:
        sums = np.cumsum(deltas[::-1])[::-1]
        sums -= np.repeat(np.append(sums[starts[1:]], 0.0), ends - starts)
        return sums
    sums = lfilter([1.0], [1.0, -factor], deltas[::-1])[::-1]
    carried = np.append(sums[starts[1:]], 0.0)  # [C] the sum over what is behind each segment
    reach = np.ceil(LOG_NOTHING / np.log(factor)) if factor else 1
    lengths = np.minimum(ends - starts, min(reach, len(deltas))).astype(np.intp)
    tails = np.cumsum(lengths)
    distances = np.repeat(tails, lengths) - np.arange(tails[-1])  # lengths[c] .. 1 in each segment
    powers = factor ** np.arange(lengths.max() + 1)
    sums[np.repeat(ends, lengths) - distances] -= np.repeat(carried, lengths) * powers[distances]
    return sums


def whitened(parts: Sequence[Float64Array]) -> list[Float64Array]:
    """Zero mean and unit deviation over all parts together."""
    count = sum(part.size for part in parts)
    if not count:
        return list(parts)
    mean = sum(float(part.sum()) for part in parts) / count
    centred = [part - mean for part in parts]
    variance = sum(float(np.vdot(part, part)) for part in centred) / count
    return [part / (np.sqrt(variance) + 1e-8) for part in centred]


def _blocks(trajectories: Sequence[Trajectory]) -> Iterator[slice]:
    """Whole trajectories, BLOCK_TOKENS and what the last one exceeds them by."""
    start, tokens = 0, 0
    for index, trajectory in enumerate(trajectories):
        tokens += sum(len(trace) for trace in trajectory.traces)
        if tokens >= BLOCK_TOKENS or index == len(trajectories) - 1:
            yield slice(start, index + 1)
            start, tokens = index + 1, 0
