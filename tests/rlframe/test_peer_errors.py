"""What open frameworks get wrong with tools, compaction and sub-agents; one test each, by name."""

from contextlib import closing

import numpy as np
import pytest

from rlframe.batch import mini_batches
from rlframe.checkpoints import Checkpoints
from rlframe.credit import CreditRules, assign_credit
from rlframe.errors import RunError
from rlframe.group_credit import assign_group_credit
from rlframe.loss_weights import WeightRules, kept_actions, weights
from rlframe.packing import plan
from rlframe.reference_kl import kl_rewards
from rlframe.store import TrajectoryStore
from rlframe.types import Link, LinkKind, Reward, Status, Trace, Trajectory

RULES = CreditRules(
    gamma=1.0, lambda_policy=0.9, lambda_critic=0.8, truncation="terminal", whiten=False
)


def trace(mask) -> Trace:
    mask = np.array(mask, bool)
    return Trace(
        np.arange(len(mask), dtype=np.int32),
        mask,
        np.where(mask, -1, 0).astype(np.float32),
        np.where(mask, 0, -1).astype(np.int32),
    )


def trajectory(masks, rewards=(), links=(), task="t", status=Status.COMPLETED) -> Trajectory:
    return Trajectory(
        task, task, "d", status, tuple(trace(m) for m in masks), tuple(rewards), tuple(links)
    )


def zeros(t: Trajectory) -> list[np.ndarray]:
    return [np.zeros(len(x), np.float32) for x in t.traces]


def continued(count: int) -> list[Link]:
    return [Link(LinkKind.CONTINUES, k + 1, k) for k in range(count - 1)]


def test_gae_does_not_run_over_tool_tokens():
    """slime ppo_utils.py, SkyRL: lambda decays, and values enter, at tokens that nobody chose."""
    plain = trajectory([[0, 1, 1]], [Reward(1.0)])
    tools = trajectory([[0, 1, 0, 0, 0, 0, 1]], [Reward(1.0)])
    wild = [np.array([7, 0.3, 50, -50, 9, 9, 0.6], np.float32)]
    one = assign_credit([plain], [[np.array([0, 0.3, 0.6], np.float32)]], rules=RULES)
    two = assign_credit([tools], [wild], rules=RULES)
    np.testing.assert_array_equal(one.advantages[0][1:], two.advantages[0][[1, 6]])
    assert not two.advantages[0][2:6].any()


def test_a_reward_does_not_go_to_a_last_token_that_is_masked():
    """slime puts it on the response's last token; where that is a tool's, it is lost or misplaced."""
    t = trajectory([[0, 1, 1, 0, 0]], [Reward(1.0)])
    found = assign_credit([t], [zeros(t)], rules=RULES)
    assert found.advantages[0] == pytest.approx([0, 0.9, 1.0, 0, 0])


def test_sub_traces_are_not_terminal_episodes_with_the_whole_reward_each():
    """slime: every sub-trace ends with the reward, so a rollout of three traces earns it three times."""
    t = trajectory([[0, 1], [0, 1], [0, 1]], [Reward(1.0, trace=2)], continued(3))
    values = [np.array([0, v], np.float32) for v in (0.2, 0.4, 0.8)]
    rules = CreditRules(1.0, 0.0, 0.0, "terminal", False)
    found = assign_credit([t], [values], rules=rules)
    deltas = [a[1] for a in found.advantages]
    assert deltas == pytest.approx([0.4 - 0.2, 0.8 - 0.4, 1.0 - 0.8])
    assert sum(deltas) == pytest.approx(1.0 - 0.2)  # the reward counts once


def test_terminal_credit_is_an_option_that_does_exactly_that():
    t = trajectory([[0, 1], [0, 1]], [Reward(1.0, trace=1)], continued(2))
    rules = CreditRules(1.0, 1.0, 1.0, "terminal", False, compaction="terminal")
    found = assign_credit([t], [zeros(t)], rules=rules)
    assert [a[1] for a in found.advantages] == [1.0, 1.0]
    link = [Link(LinkKind.SPAWNED_BY, 1, 0, call_position=0, join_position=1)]
    child = trajectory([[0, 1], [0, 1, 1]], [Reward(2.0, trace=0)], link)
    rules = CreditRules(1.0, 0.0, 0.0, "terminal", False, sub_agent="terminal")
    found = assign_credit([child], [zeros(child)], rules=rules)
    assert found.advantages[1].tolist() == [0, 0, 2.0]


def test_the_critics_targets_have_the_kl_term_that_the_advantages_have():
    """slime adds the KL to the policy's rewards after the critic's targets were made."""
    t = trajectory([[0, 1, 0, 1]], [Reward(1.0)])
    old, ref = np.array([0, -1, 0, -2], np.float32), np.array([0, -1.5, 0, -1.0], np.float32)
    masks = [t.traces[0].loss_mask]
    penalties = kl_rewards([old], [ref], masks, estimator="k1", coef=0.1)
    assert penalties[0] == pytest.approx([0, -0.05, 0, 0.1])
    rules = CreditRules(1.0, 1.0, 1.0, "terminal", False)
    found = assign_credit([t], [zeros(t)], rules=rules, token_rewards=[penalties])
    assert found.returns[0] == pytest.approx([0, 1.05, 0, 1.1])
    np.testing.assert_allclose(found.returns[0], found.advantages[0])


def test_the_critic_does_not_save_over_the_policys_checkpoint(tmp_path):
    """Both in slime save to `--save`."""
    written = {}

    def save(name):
        def into(directory):
            from pathlib import Path

            Path(directory).mkdir()
            (Path(directory) / "weights").write_text(name)
            written[name] = directory

        return into

    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, {"policy": save("policy"), "critic": save("critic")})
    found = kept.latest()
    assert found is not None
    for name in ("policy", "critic"):
        with open(found.role(name) + "/weights") as file:
            assert file.read() == name


def test_a_group_is_a_tasks_rollouts_and_not_all_traces_of_the_batch():
    """slime's baseline becomes one global group as soon as a rollout yields several traces."""
    batch = [
        trajectory([[0, 1]] * 3, [Reward(1.0)], continued(3), task="a"),
        trajectory([[0, 1]], [Reward(0.0)], task="a"),
        trajectory([[0, 1]] * 2, [Reward(1.0, trace=1)], continued(2), task="b"),
        trajectory([[0, 1]], [Reward(1.0)], task="b"),
    ]
    rules = CreditRules(1.0, 1.0, 1.0, "terminal", False, estimator="rloo")
    found = [float(a[1]) for a in assign_group_credit(batch, rules=rules).advantages]
    assert found == [1.0, 1.0, 1.0, -1.0, 0.0, 0.0, 0.0]


def test_filters_take_rollouts_of_several_traces():
    """slime's dynamic sampling and OPSM index one sample a rollout (slime#2374)."""
    t = trajectory([[0, 1, 1], [0, 0], [0, 1]], [Reward(1.0)], continued(3))
    masks = [x.loss_mask for x in t.traces]
    for trains in ("all", "last_trace", "no_summaries"):
        rules = WeightRules(trains=trains, reject_below=0.5, mask_older_than=1)
        kept = kept_actions([t], masks, zeros(t), rules=rules, version=0)
        found = weights([t], masks, kept.masks, aggregation="per_trajectory")
        assert [len(w) for w in found] == [3, 2, 2]
    parts = mini_batches([t, t, t], 2, rng=np.random.default_rng(0))
    assert sorted(len(p) for p in parts) == [3, 6]


@pytest.mark.parametrize("status", [Status.INFRA_ERROR, Status.FAILED, Status.ABORTED])
def test_an_infrastructure_failure_is_never_a_reward_of_zero(status, tmp_path):
    """It is no outcome: neither its actions nor its 0 reach a batch or, through one, a baseline."""
    assert not status.is_trainable
    good = trajectory([[0, 1]], [Reward(1.0)], task="good")
    lost = trajectory([[0, 1]], [], task="lost", status=status)
    with closing(TrajectoryStore(tmp_path / "trajectories.sqlite")) as store:
        store.put([good, lost])
        assert [t.id for t in store.pending()] == ["good"]
        with pytest.raises(RunError, match="lost"):
            store.record_batch(0, ["good", "lost"])
        assert store.batch(0) is None


def test_no_micro_batch_is_over_the_cap():
    """slime's --balance-by-flops and older verl fill by workload and exceed the token cap."""
    lengths = (
        np.random.default_rng(0).lognormal(7.6, 1.0, 600).clip(16, 16_384).astype(int).tolist()
    )
    costs = [n + n * n / 2_000 for n in lengths]
    planned = plan(lengths, data_parallel=8, max_tokens=16_384, costs=costs)
    fullest = max(sum(lengths[r] for r in m) for rank in planned.micro_batches for m in rank)
    assert fullest <= 16_384
