"""Advantages without a critic: the group is task -> rollouts -> traces."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.credit import CreditRules
from rlframe.group_credit import assign_group_credit
from rlframe.types import Reward, Status, Trace, Trajectory

RULES = CreditRules(
    gamma=1.0, lambda_policy=0.9, lambda_critic=0.9, truncation="terminal", whiten=False
)


def trajectory(task: str, reward: float, traces: int, number: int = 0) -> Trajectory:
    one = Trace(
        np.arange(4, dtype=np.int32),
        np.array([0, 1, 0, 1], bool),
        np.array([0, -1, 0, -1], np.float32),
        np.array([-1, 0, -1, 0], np.int32),
    )
    rewards = (Reward(reward, trace=traces - 1),)
    return Trajectory(f"{task}/{number}", task, "d", Status.COMPLETED, (one,) * traces, rewards)


def rules(estimator: str) -> CreditRules:
    from dataclasses import replace

    return replace(RULES, estimator=estimator)


groups_strategy = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 4)), min_size=1, max_size=5),
    min_size=1,
)


@given(groups_strategy, st.sampled_from(["grpo", "rloo"]))
def test_baselines_are_of_the_tasks_rollouts_however_many_traces_each_has(groups, estimator):
    batch = [trajectory(task, r, n, i) for task, g in groups.items() for i, (r, n) in enumerate(g)]
    found = iter(assign_group_credit(batch, rules=rules(estimator)).advantages)
    for group in groups.values():
        rewards = [r for r, _ in group]
        for index, (reward, traces) in enumerate(group):
            others = rewards[:index] + rewards[index + 1 :]
            expected = 0.0
            if others and estimator == "rloo":
                expected = reward - np.mean(others)
            elif others:
                expected = (reward - np.mean(rewards)) / (np.std(rewards) + 1e-6)
            for advantages in itertools.islice(found, traces):
                assert advantages == pytest.approx([0, expected, 0, expected], abs=1e-5)


def test_reinforce_plus_plus_is_the_whitened_return_to_go():
    batch = [trajectory("a", 2.0, 1), trajectory("b", 0.0, 1)]
    found = assign_group_credit(batch, rules=rules("reinforce_pp"))
    assert found.advantages[0] == pytest.approx([0, 1, 0, 1], abs=1e-5)
    assert found.advantages[1] == pytest.approx([0, -1, 0, -1], abs=1e-5)
    assert not any(r.any() for r in found.returns)


def test_a_penalty_on_tokens_is_part_of_the_rollouts_reward():
    batch = [trajectory("a", 1.0, 1), trajectory("a", 1.0, 1, 1)]
    token_rewards = [[np.array([9, -1, 9, 0], np.float32)], [np.zeros(4, np.float32)]]
    found = assign_group_credit(batch, rules=rules("rloo"), token_rewards=token_rewards)
    assert found.advantages[0] == pytest.approx([0, -1, 0, -1])
    assert found.advantages[1] == pytest.approx([0, 1, 0, 1])
