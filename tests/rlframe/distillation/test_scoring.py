"""Trajectories are scored as they finish, each trace by itself, once; what is scored survives."""

import numpy as np
import pytest

from rlframe.distillation.score_store import MOST_KEPT, ScoreStore
from rlframe.distillation.scoring import Scoring
from rlframe.errors import RunError
from rlframe.teaching import TeacherScores
from tests.scripted_teachers import ScriptedTeachers, score, trace, trajectory

FIRST = trajectory("train/1", "a", trace([5, 6, 7, 8], [0, 0, 1, 1]), trace([5, 9, 3], [0, 1, 1]))
SECOND = trajectory("train/2", "b", trace([1, 2], [0, 1]), trace([4, 4], [0, 0]))


def teacher_of(found):
    return f"teacher_{found.domain}"


@pytest.fixture
def store(tmp_path):
    kept = ScoreStore(tmp_path / "scores.sqlite")
    yield kept
    kept.close()


@pytest.fixture
def started(store):
    scorings = []

    def start(service, **options):
        scoring = Scoring(service, store, teacher_of, **options)
        scoring.start()
        scorings.append(scoring)
        return scoring

    yield start
    for scoring in scorings:
        scoring.close()


def test_each_trace_in_its_own_context_from_its_first_action(started):
    service = ScriptedTeachers()
    found = started(service).scores([SECOND, FIRST])
    asked = {r.id: (r.teacher, r.token_ids.tolist(), r.begin) for r in service.asked}
    assert asked == {
        "train/2/0": ("teacher_b", [1, 2], 1),
        "train/1/0": ("teacher_a", [5, 6, 7, 8], 2),
        "train/1/1": ("teacher_a", [5, 9, 3], 1),
    }
    assert [t.teacher for t in found] == ["teacher_b"] * 2 + ["teacher_a"] * 2
    np.testing.assert_allclose(found[0].logprobs, [0, -0.02])
    np.testing.assert_array_equal(found[1].logprobs, [0, 0])  # no action: nobody was asked
    np.testing.assert_allclose(found[2].logprobs, [0, 0, -0.07, -0.08])


def test_the_first_is_asked_about_while_the_second_still_runs(started):
    service = ScriptedTeachers(released=False)
    scoring = started(service)
    scoring.begin([FIRST])
    assert len(service.asked) == 2  # and the batch is not complete
    scoring.begin([FIRST])
    assert len(service.asked) == 2  # once
    service.release()
    assert len(scoring.scores([FIRST, SECOND])) == 4
    assert scoring.metrics()["swaps"] == 1.0


def test_a_resumed_run_is_given_what_was_said_before(started, store):
    before = started(ScriptedTeachers(), top_k=3).scores([FIRST])

    def other(request):
        raise AssertionError("nobody should be asked")

    after = started(ScriptedTeachers(other), top_k=3).scores([FIRST])
    for one, two in zip(before, after, strict=True):
        assert one.teacher == two.teacher
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
        np.testing.assert_array_equal(one.top_ids, two.top_ids)
        np.testing.assert_array_equal(one.top_logprobs, two.top_logprobs)
    assert store.get(FIRST, top_k=0) is None  # another objective: asked again
    assert store.counts() == {"teacher_a": 2}


def test_wide_candidates_are_not_kept(started, store):
    started(ScriptedTeachers(), top_k=MOST_KEPT + 1).scores([FIRST])
    assert store.get(FIRST, top_k=MOST_KEPT + 1) is None


def test_a_failed_trace_comes_back_with_its_error_and_is_asked_about_again(started, store):
    def failing(request):
        if request.id == "train/1/1":
            return TeacherScores(request.id, request.teacher, np.zeros(3, np.float32), error="NaN")
        return score(request)

    found = started(ScriptedTeachers(failing), top_k=2).scores([FIRST])
    assert [t.error for t in found] == ["", "NaN"]
    assert found[1].top_ids.shape == (3, 2)
    assert store.get(FIRST, top_k=2) is None


def test_what_the_service_raises_reaches_the_learner(started):
    def broken(request):
        raise RunError("teacher_a failed 3 times")

    with pytest.raises(RunError, match="failed 3 times"):
        started(ScriptedTeachers(broken)).scores([FIRST])


def test_forgotten_ones_may_still_arrive(started):
    service = ScriptedTeachers(released=False)
    scoring = started(service)
    scoring.begin([FIRST])
    scoring.forget(["train/1"])
    service.release()
    assert len(scoring.scores([SECOND])) == 2
