"""Metrics are what their names say, against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from rlframe import statistics
from rlframe.types import Reward, Status, Trace, TrainRow, Trajectory


def trace(mask, versions, logprobs) -> Trace:
    return Trace(
        token_ids=np.arange(len(mask), dtype=np.int32),
        loss_mask=np.array(mask, bool),
        rollout_logprobs=np.array(logprobs, np.float32),
        versions=np.array(versions, np.int32),
    )


def test_gap_counts_only_calls_of_this_version():
    """The first call was met by an update, the second was not."""
    one = trace([0, 1, 1, 0, 1, 1], [-1, 4, 5, -1, 5, 5], [0, -1.0, -8.0, 0, -2.0, -3.0])
    trained = np.array([9.0, -9.0, -9.0, 9.0, -2.5, -3.25], np.float32)
    gap = statistics.logprob_gap([one], [trained], version=5)
    assert gap.mean == pytest.approx((0.5 + 0.25) / 2)
    assert gap.max == pytest.approx(0.5)
    assert statistics.logprob_gap([one], [trained], version=7) == statistics.Gap(0.0, 0.0)


def test_explained_variance_edges():
    targets = np.array([1.0, 2.0, 3.0], np.float32)
    assert statistics.explained_variance(targets, targets) == 1.0
    assert statistics.explained_variance(np.full(3, 2.0, np.float32), targets) == 0.0
    assert statistics.explained_variance(-targets, targets) == pytest.approx(-3.0)
    assert statistics.explained_variance(targets, np.ones(3, np.float32)) == 0.0


def test_of_step_names_rewards_staleness_and_truncation():
    t = trace([0, 1, 1], [-1, 3, 4], [0, -1.0, -1.0])
    trajectories = [
        Trajectory("a", "a", "gcd", Status.COMPLETED, (t,), (Reward(1.0),), info={"turns": 2}),
        Trajectory("b", "b", "lcm", Status.TRUNCATED_TURNS, (t, t), (Reward(0.25), Reward(0.25))),
    ]
    zero = np.zeros(3, np.float32)
    row = TrainRow(
        token_ids=t.token_ids,
        loss_mask=t.loss_mask,
        advantages=zero,
        returns=np.array([0, 1, 2], np.float32),
        old_logprobs=t.rollout_logprobs,
        old_values=np.array([0, 1, 1], np.float32),
        rollout_logprobs=t.rollout_logprobs,
    )
    found = statistics.of_step(trajectories, [row] * 3, version=4)
    assert not [name for name in found if name.startswith("session/")]
    counted = {"calls": 3, "full_renders": 1, "coalesced": 0, "replayed": 2, "aborted": 0}
    counted |= {"infra_faults": 0, "synthetic": 1}
    more = replace(trajectories[0], info={"session": counted, "compactions": 2, "agents": [{}]})
    agents = statistics.of_step([more, trajectories[1]], [row] * 3, version=4)
    assert agents["session/full_renders_share"] == pytest.approx(1 / 3)
    assert agents["session/budget_spent_share"] == 1.0
    assert agents["rollout/compactions"] == 1.0
    assert agents["rollout/agents"] == 0.5
    assert found["reward/mean"] == 0.75
    assert found["reward/gcd"] == 1.0
    assert found["reward/lcm"] == 0.5
    assert found["staleness/max"] == 1.0
    assert found["rollout/truncated"] == 0.5
    assert found["rollout/truncated_actions"] == pytest.approx(2 / 3)
    assert found["rollout/actions"] == 6
    assert found["rollout/turns"] == 1.5
    assert found["critic/value_bias"] == -0.5
    assert found["gap/mean"] == 0.0


def test_mean_of_updates():
    assert statistics.mean_of("policy", [{"loss": 1.0}, {"loss": 3.0}]) == {"policy/loss": 2.0}
    assert statistics.mean_of("policy", []) == {}
