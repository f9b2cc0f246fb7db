"""The recursion of GAE as one compiled loop over actions, from the back, without arrays in between.

Imported where credit is first assigned: numba costs half a second, and the first process on a machine a
second more to compile (what it made is kept beside this file, or in the user's cache).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from rlframe.chains import Float64Array, IntArray
from rlframe.types import Float32Array


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # no directory that can be written: compiled in every process
        return njit(function)


def _scan(
    values: Float32Array,  # [tokens]
    positions: IntArray,  # [A] of the actions among the tokens, chain after chain
    rewards: Float64Array,  # [A]
    ends: IntArray,  # [C] one past the last action of each chain
    end_values: Float64Array,  # [C] what follows it
    gamma: float,
    policy_lambdas: Float64Array,  # [C]
    critic_lambda: float,
    advantages: Float32Array,  # [tokens], written at the actions
    returns: Float32Array,  # [tokens], written at the actions
) -> None:
    """delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lambda A_{t+1}; in float64."""
    start = 0
    for c in range(len(ends)):
        following, policy, critic = end_values[c], 0.0, 0.0
        for_policy, for_critic = gamma * policy_lambdas[c], gamma * critic_lambda
        for i in range(ends[c] - 1, start - 1, -1):
            t = positions[i]
            value = float(values[t])
            delta = rewards[i] + gamma * following - value
            policy = delta + for_policy * policy
            critic = delta + for_critic * critic
            advantages[t] = policy
            returns[t] = critic + value
            following = value
        start = ends[c]


scan = _compiled(_scan)
