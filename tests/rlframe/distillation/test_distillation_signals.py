"""What teachers' scores are worth: advantages, rewards, weights, failures; who teaches whom."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.bad_steps import BadSteps
from rlframe.batch import bare_rows, flatten
from rlframe.config.schema import OpdConfig
from rlframe.distillation import signals
from rlframe.distillation.learning import Teaching
from rlframe.distillation.signals import Taught
from rlframe.distillation.teacher_choice import TeacherChoice
from rlframe.errors import RunError
from rlframe.learner import Learner
from rlframe.metrics import Metrics
from rlframe.teachers.manifest import parse_manifest
from tests.scripted_teachers import trace, trajectory

BATCH = [
    trajectory("train/1", "a", trace([5, 6, 7], [0, 1, 1]), trace([5, 9], [0, 1]), reward=2.0),
    trajectory("train/2", "b", trace([1, 2], [0, 1]), reward=0.0),
]
OLD = [np.array(x, np.float32) for x in ([0, -1.0, -2.0], [0, -3.0], [0, -0.5])]
TEACHER = [np.array(x, np.float32) for x in ([0, -2.0, -0.5], [0, -3.0], [0, -50.0])]
RATIOS = [[0, 1.0, -1.5], [0, 0.0], [0, 20.0]]  # the last is bounded


def taught(error=""):
    return [
        Taught("t", logprobs, error=error if i == 1 else "") for i, logprobs in enumerate(TEACHER)
    ]


class Given:
    def __init__(self, scores):
        self._scores = scores

    def scores(self, trajectories):
        return self._scores

    def metrics(self):
        return {"swaps": 2.0}


class Done:
    def __init__(self, value):
        self._value = value

    def result(self):
        return self._value


class ScriptedPolicy:
    """Returns `OLD` and keeps what it is given to learn from."""

    def layout(self):
        return {"data": 1, "tensor": 1, "pipeline": 1}

    def logprobs(self, rows, plan):
        return Done(OLD)

    def values(self, rows, plan):
        return Done([np.full(len(row.token_ids), 0.25, np.float32) for row in rows])

    def teacher_logprobs(self, rows, plan):
        self.indices = [row.teacher_index.tolist() for row in rows]
        return Done(TEACHER)

    def update(self, rows, plan, step):
        self.rows = rows
        return Done({"loss": 0.0, "grad_norm": 1.0, "skipped": 0.0})


def learn(tmp_path, algorithm, scores=None, *, critic=None, indices=None):
    policy = ScriptedPolicy()
    learner = Learner(
        algorithm=replace(algorithm, max_logprob_gap=1e9),
        policy=policy,
        critic=critic,
        max_tokens_per_micro_batch=100,
        row_costs=lambda lengths: [float(n) for n in lengths],
        bad_steps=BadSteps("stop", 3, tmp_path),
        seed=0,
        teaching=Teaching(algorithm, Given(scores or taught()), indices or {}),
    )
    measured = learner.learn(BATCH, 0, Metrics(tmp_path / "metrics.jsonl"))
    return policy, measured


def test_pure_distillation_is_the_negative_log_ratio(tmp_path):
    algorithm = OpdConfig(
        whiten_advantages=False, distill_coef=0.5, domain_weights={"b": 0.1}, critic=False
    )
    policy, measured = learn(tmp_path, algorithm)
    np.testing.assert_allclose(policy.rows[0].advantages, [0, -0.5, 0.75])
    np.testing.assert_allclose(policy.rows[1].advantages, [0, 0])
    np.testing.assert_allclose(policy.rows[2].advantages, [0, -1.0])
    assert measured["teacher_kl/a"] == pytest.approx((1.0 - 1.5 + 0.0) / 3)
    assert measured["teacher_kl/b"] == 20.0
    assert measured["teacher_kl/mean"] == pytest.approx(19.5 / 4)
    assert measured["teachers/swaps"] == 2.0


def test_beside_the_task_reward_the_critics_targets_stay_the_tasks(tmp_path):
    algorithm = OpdConfig(
        whiten_advantages=False, task_reward=True, lambda_policy=1.0, lambda_critic=1.0
    )
    critic = ScriptedPolicy()
    policy, _ = learn(tmp_path, algorithm, critic=critic)
    np.testing.assert_allclose(policy.rows[0].advantages, [0, 1.75 - 1.0, 1.75 + 1.5])
    np.testing.assert_allclose(policy.rows[2].advantages, [0, -0.25 - 20.0])
    np.testing.assert_allclose(critic.rows[0].returns, [0, 2.0, 2.0])


def test_in_the_reward_later_tokens_count_too(tmp_path):
    algorithm = OpdConfig(
        whiten_advantages=False, distill_in="reward", lambda_policy=1.0, critic=False
    )
    policy, _ = learn(tmp_path, algorithm)
    # Through the compaction: -(1.0 - 1.5 + 0.0), then 1.5 - 0.0, then 0.
    np.testing.assert_allclose(policy.rows[0].advantages, [0, 0.5, 1.5])
    np.testing.assert_allclose(policy.rows[1].advantages, [0, 0.0])


def test_a_divergence_brings_its_candidates_and_no_advantage(tmp_path):
    scores = [
        replace(t, top_ids=np.zeros((len(t.logprobs), 1), np.int32), top_logprobs=np.zeros((len(t.logprobs), 1), np.float32))
        for t in taught()
    ]  # fmt: skip
    algorithm = OpdConfig(
        objective="jsd", top_k=1, domain_weights={"a": 3.0}, whiten_advantages=False
    )
    policy, _ = learn(tmp_path, algorithm, scores)
    assert [row.advantages.any() for row in policy.rows] == [False] * 3
    assert [row.teacher_weights[0] for row in policy.rows] == [3.0, 3.0, 1.0]
    assert policy.rows[0].teacher_top_ids.shape == (3, 1)
    assert not policy.rows[0].has("teacher_index")


@pytest.mark.parametrize("objective", ["sampled", "reverse_kl"])
def test_teachers_on_the_ranks_are_named_by_number(tmp_path, objective):
    algorithm = OpdConfig(objective=objective, teachers_on="ranks", whiten_advantages=False)
    scores = [Taught("x", None), Taught("x", None), Taught("y", None)]
    policy, measured = learn(tmp_path, algorithm, scores, indices={"y": 0, "x": 1})
    if objective == "sampled":
        assert policy.indices == [[1, 1, 1], [1, 1], [0, 0]]
        np.testing.assert_allclose(policy.rows[0].advantages, [0, -1.0, 1.5])
    else:
        assert policy.rows[2].teacher_index.tolist() == [0, 0]
        assert "teacher_kl/mean" not in measured


def test_nobody_learns_from_a_trace_that_was_not_scored(tmp_path):
    algorithm = OpdConfig(whiten_advantages=False)
    policy, measured = learn(tmp_path, algorithm, taught(error="NaN"))
    assert [bool(row.loss_mask.any()) for row in policy.rows] == [True, False, True]
    assert measured["teachers/not_scored"] == 1.0
    everything = [replace(t, error="NaN") for t in taught()]
    with pytest.raises(RunError, match="no trace of the step was scored by a teacher: NaN"):
        learn(tmp_path, algorithm, everything)


def test_log_ratios_are_bounded_and_zero_outside_the_mask():
    masks = [row.loss_mask for row in bare_rows(flatten(BATCH))]
    for found, expected in zip(signals.log_ratios(OLD, taught(), masks), RATIOS, strict=True):
        np.testing.assert_allclose(found, expected)


def manifest(*weights):
    teachers = [
        {"name": f"t{i}", "checkpoint": "x", "domains": ["a"], "weight": w}
        for i, w in enumerate(weights)
    ]
    return parse_manifest({"teachers": teachers}, path="m.yaml")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=4))
def test_a_mixture_draws_by_weight_and_always_the_same(weights):
    choice = TeacherChoice(manifest(*weights))
    drawn = [choice.of(trajectory(f"train/{i}", "a")) for i in range(3000)]
    assert drawn[:50] == [choice.of(trajectory(f"train/{i}", "a")) for i in range(50)]
    for i, weight in enumerate(weights):
        assert drawn.count(f"t{i}") / 3000 == pytest.approx(weight / sum(weights), abs=0.05)


def test_the_best_teacher_takes_the_whole_domain():
    choice = TeacherChoice(manifest(1.0, 1.0), {"a": "t1"})
    assert {choice.of(trajectory(f"train/{i}", "a")) for i in range(50)} == {"t1"}
    with pytest.raises(KeyError, match="nobody teaches"):
        choice.of(trajectory("train/0", "z"))
