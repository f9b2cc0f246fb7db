"""Evaluation in the background, against a scripted service: one version an evaluation, nothing waits.

The service is an in-memory stand-in, because the subject is the order of events; the real stack is in
tests/e2e/test_background_evaluation_run.py.
"""

import queue

import numpy as np
import pytest

from rlframe.background_evaluation import BackgroundEvaluation
from rlframe.errors import RunError
from rlframe.types import Reward, Status, Task, Trace, Trajectory, WeightManifest

TASKS = [Task(id=f"h{i}", domain="d", messages=()) for i in range(3)]


class Service:
    """Ends attempts when the test says so, at the version that it was synced to."""

    def __init__(self) -> None:
        self.version = -1
        self.submitted: list[str] = []
        self.finished: queue.Queue = queue.Queue()

    def sync(self, manifest):
        self.version = manifest.version
        return {}

    def submit(self, requests):
        self.submitted += [r.id for r in requests]

    def end(self, *ids, version=None):
        for attempt_id in ids:
            at = self.version if version is None else version
            trace = Trace(
                token_ids=np.arange(3, dtype=np.int32),
                loss_mask=np.array([False, True, True]),
                rollout_logprobs=np.array([0, -1, -1], np.float32),
                versions=np.array([-1, self.version, at], np.int32),
            )
            self.finished.put(
                Trajectory(attempt_id, "t", "d", Status.COMPLETED, (trace,), (Reward(1.0),))
            )

    def collect(self, timeout_s):
        try:
            found = self.finished.get(timeout=0.02)
        except queue.Empty:
            return []
        if isinstance(found, Exception):
            raise found
        return [found]


class Ledger:
    def __init__(self) -> None:
        self.stored: list[str] = []

    def put(self, trajectories):
        self.stored += [t.id for t in trajectories]


@pytest.fixture
def parts():
    service, ledger = Service(), Ledger()
    background = BackgroundEvaluation(
        service, ledger, TASKS, lambda v: WeightManifest(v, "", {}), known={"eval/7/h1"}
    )
    background.start()
    yield background, service, ledger
    background.close()


def test_an_evaluation_is_of_the_version_that_it_began_with(parts):
    background, service, ledger = parts
    assert background.under_way is None
    assert background.ended() is None
    assert background.begin(4)
    assert service.version == 4
    assert service.submitted == ["eval/4/h0", "eval/4/h1", "eval/4/h2"]
    service.end("eval/4/h0", "eval/4/h1")
    assert background.ended() is None
    assert not background.begin(5), "the engines would have got another version"
    assert service.version == 4
    service.end("eval/4/h2")
    ended = background.ended(wait=True)
    assert (ended.version, ended.strangers) == (4, 0)
    assert {t.id for t in ended.attempts} == set(service.submitted) == set(ledger.stored)
    assert background.ended(wait=True) is None
    assert background.begin(6)
    assert service.version == 6


def test_what_has_ended_but_was_not_handed_out_holds_the_next_one_back(parts):
    background, service, _ = parts
    background.begin(1)
    service.end(*service.submitted)
    with background._changed:
        background._changed.wait_for(lambda: not background._waiting)
    assert not background.begin(2)
    assert background.ended().version == 1


def test_an_attempt_with_a_token_of_another_version_does_not_count(parts):
    background, service, ledger = parts
    background.begin(4)
    service.end("eval/4/h0", "eval/4/h2")
    service.end("eval/4/h1", version=5)
    ended = background.ended(wait=True)
    assert {t.id for t in ended.attempts} == {"eval/4/h0", "eval/4/h2"}
    assert ended.strangers == 1
    assert len(ledger.stored) == 3


def test_a_version_that_is_evaluated_again_after_a_restart_has_new_ids(parts):
    background, service, _ = parts
    background.begin(7)
    assert service.submitted == ["eval/7/h0", "eval/7/h1+1", "eval/7/h2"]
    service.end(*service.submitted)
    assert len(background.ended(wait=True).attempts) == 3


def test_what_the_service_raises_is_raised_in_the_loop(parts):
    background, service, _ = parts
    background.begin(1)
    service.finished.put(RunError("engine 0 failed"))
    with pytest.raises(RunError, match="engine 0"):
        background.ended(wait=True)
