"""What the watcher of a run does with evaluations in the background: which are made, when each is logged.

Background and service are stand-ins, because the subject is the order of events.
"""

from dataclasses import replace

import pytest

from rlframe.background_evaluation import Evaluated
from rlframe.config.schema import RunConfig
from rlframe.errors import RunError
from rlframe.launch.watch import PpoWatcher
from rlframe.metrics import HELD_OUT, Metrics
from rlframe.types import Reward, Status, Trajectory


def attempt(reward, status=Status.COMPLETED):
    return Trajectory("eval/x", "t", "d", status, (), (Reward(reward),), info={"error": "gone"})


class Background:
    """An evaluation ends when the test says so."""

    def __init__(self):
        self.begun: list[int] = []
        self.under_way = None
        self.done = None
        self.waited = 0

    def begin(self, version):
        if self.under_way is not None:
            return False
        self.begun.append(version)
        self.under_way = version
        return True

    def end(self, *attempts, strangers=0):
        self.done = Evaluated(self.under_way, list(attempts), strangers)

    def ended(self, *, wait=False):
        if wait and self.under_way is not None and self.done is None:
            self.waited += 1
            self.end(attempt(1.0))
        if self.done is None:
            return None
        done, self.done, self.under_way = self.done, None, None
        return done


@pytest.fixture
def parts(tmp_path):
    config = RunConfig(steps=6)
    config = replace(
        config,
        logging=replace(config.logging, eval_every=2),
        trainer=replace(config.trainer, checkpoint_every=0),
    )
    metrics = Metrics(tmp_path / "metrics.jsonl")
    background, said, saved = Background(), [], []
    watcher = PpoWatcher(
        config, None, None, metrics, None, None, None, background=background, warn=said.append
    )
    object.__setattr__(
        watcher, "checkpoints", type("C", (), {"save": lambda *a: saved.append(a)})()
    )
    yield watcher, background, metrics, said
    metrics.close()


def logged(metrics):
    return {line["step"]: line for line in metrics.history if line["event"] == HELD_OUT}


def test_an_evaluation_is_logged_under_the_version_that_it_was_of(parts):
    watcher, background, metrics, said = parts
    watcher.evaluate(0)
    watcher.after_step(1, {})
    assert logged(metrics) == {}
    background.end(attempt(1.0), attempt(0.0), attempt(9.0, Status.INFRA_ERROR), strangers=1)
    watcher.after_step(2, {})
    assert background.begun == [0, 2]
    line = logged(metrics)[0]
    assert line["held_out/mean"] == 0.5
    assert (line["evaluation/lost"], line["evaluation/strangers"]) == (1.0, 1.0)
    assert said == []


def test_one_that_falls_due_while_another_is_under_way_is_left_out_and_said(parts):
    watcher, background, _, said = parts
    watcher.evaluate(0)
    watcher.after_step(2, {})
    assert background.begun == [0]
    assert "of step 2 is left out: that of step 0" in said[0]


def test_the_last_is_always_made_and_waited_for(parts):
    watcher, background, metrics, _ = parts
    watcher.after_step(4, {})
    watcher.after_step(6, {})
    watcher.finish()
    assert background.begun == [4, 6]
    assert background.waited == 2
    assert sorted(logged(metrics)) == [4, 6]


def test_what_was_logged_before_a_resume_is_not_made_again(parts):
    watcher, background, metrics, _ = parts
    metrics.log(4, {"held_out/mean": 0.1}, event=HELD_OUT)
    watcher.evaluate(4)
    assert background.begun == []


def test_where_everything_was_lost_the_run_ends(parts):
    watcher, background, _, _ = parts
    watcher.evaluate(0)
    background.end(attempt(0.0, Status.INFRA_ERROR))
    with pytest.raises(RunError, match="gone"):
        watcher.after_step(1, {})
