"""Who learns how often in a step, and by whose layout and costs its rows are packed."""

import numpy as np
import pytest

from rlframe.bad_steps import BadSteps
from rlframe.config.schema import PpoConfig
from rlframe.learner import Learner
from rlframe.metrics import Metrics
from rlframe.types import Reward, Status, Trace, Trajectory


class Done:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class RecordingRole:
    """Agrees with the engine, values everything at 0.5, notes its updates. Stands in for the ranks."""

    def __init__(self, data):
        self.data, self.updates = data, []

    def layout(self):
        return {"data": self.data, "tensor": 1, "pipeline": 1}

    def logprobs(self, rows, plan):
        return Done([row.rollout_logprobs for row in rows])

    def values(self, rows, plan):
        assert plan.data_parallel_size == self.data
        return Done([np.full(len(row.token_ids), 0.5, np.float32) for row in rows])

    def update(self, rows, plan, step):
        assert plan.data_parallel_size == self.data
        self.updates.append((len(rows), plan.micro_batches))
        return Done({"loss": 0.0, "grad_norm": 1.0, "skipped": 0.0})


def batch(lengths):
    def one(index, length):
        mask = np.arange(length) > 0
        trace = Trace(
            np.full(length, index, np.int32),
            mask,
            np.where(mask, -1, 0).astype(np.float32),
            np.where(mask, 0, -1).astype(np.int32),
        )
        return Trajectory(str(index), "t", "d", Status.COMPLETED, (trace,), (Reward(index % 2),))

    return [one(i, n) for i, n in enumerate(lengths)]


def learn(tmp_path, *, step, lengths=(4,) * 8, critic_costs=None, **knobs):
    policy, critic = RecordingRole(data=1), RecordingRole(data=2)
    learner = Learner(
        algorithm=PpoConfig(**knobs),
        policy=policy,
        critic=critic,
        max_tokens_per_micro_batch=64,
        row_costs=lambda n: [1.0 for _ in n],
        critic_row_costs=critic_costs,
        bad_steps=BadSteps("stop", 3, tmp_path),
        seed=0,
    )
    measured = learner.learn(batch(lengths), step, Metrics(tmp_path / "metrics.jsonl"))
    return policy, critic, measured


@pytest.mark.parametrize(("step", "policy_updates"), [(1, 0), (2, 2)])
def test_the_critic_updates_k_times_and_alone_in_its_warm_up(tmp_path, step, policy_updates):
    knobs = {"critic_warmup_steps": 2, "critic_mini_batches": 4, "mini_batches": 2}
    policy, critic, measured = learn(tmp_path, step=step, **knobs)
    assert [rows for rows, _ in critic.updates] == [2, 2, 2, 2]
    assert [rows for rows, _ in policy.updates] == [4] * policy_updates
    assert ("policy/loss" in measured) == bool(policy_updates)
    assert measured["critic/value_bias"] == pytest.approx(0.0)
    assert {"critic/bias_early", "critic/explained_variance_late"} <= measured.keys()


def test_the_critics_ranks_are_balanced_by_its_own_costs(tmp_path):
    """To the policy all rows cost the same; to this critic one costs as much as the other seven."""
    lengths = (30, *(4,) * 7)
    _, critic, _ = learn(
        tmp_path,
        step=0,
        lengths=lengths,
        critic_costs=lambda n: [7.0 if k == 30 else 1.0 for k in n],
    )
    (_, ranks), *_ = critic.updates
    assert sorted(sum(map(len, rank)) for rank in ranks) == [1, 7]
