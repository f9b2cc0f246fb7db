"""The loop of value pretraining: what is held out, when it stops, what it keeps."""

from contextlib import closing

import numpy as np
import pytest

from rlframe.config.schema import ValueConfig
from rlframe.errors import RunError
from rlframe.metrics import VALUES, Metrics, series
from rlframe.store import TrajectoryStore
from rlframe.stored_trajectories import StoredTrajectories
from rlframe.types import Reward, Status, Trace, Trajectory
from rlframe.value_pretraining import ValueLoop


class Done:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class ScriptedCritic:
    """Its values are off by a given amount at each evaluation. Stands in for the ranks."""

    def __init__(self, offsets, *, skips=False):
        self.offsets, self.skips, self.trained = list(offsets), skips, []

    def layout(self):
        return {"data": 1}

    def update(self, rows, plan, step):
        self.trained.append([row.token_ids[0] for row in rows])
        return Done({"loss": 1.0, "skipped": float(self.skips)})

    def values(self, rows, plan):
        offset = self.offsets.pop(0)
        return Done([row.returns + np.float32(offset) for row in rows])


class NoWatcher:
    def after_step(self, step, logged):
        """Nobody looks."""


@pytest.fixture
def stored(tmp_path):
    """Forty tasks; a token says which one, a third reward of 1."""
    mask = np.array([False, True, True])
    with closing(TrajectoryStore(tmp_path / "trajectories.sqlite")) as store:
        store.put(
            [
                Trajectory(
                    str(i), f"t{i}", "d", Status.COMPLETED,
                    (Trace(np.full(3, i, np.int32), mask, np.zeros(3, np.float32),
                           np.where(mask, 0, -1).astype(np.int32)),),
                    (Reward(float(i % 3 == 0)),),
                )
                for i in range(40)
            ]
        )  # fmt: skip
    with StoredTrajectories([str(tmp_path)], until_version=-1, max_trace_tokens=9) as data:
        yield data


def loop_of(stored, critic, path, *, patience=2, kept=None, after_step=0):
    training, held_out = stored.split(held_out_share=0.3)
    return ValueLoop(
        critic=critic,
        stored=stored,
        training=training,
        held_out=held_out,
        metrics=Metrics(path / "metrics.jsonl", after_step=after_step),
        watcher=NoWatcher(),
        keep_best=lambda: kept.append(len(critic.offsets)) if kept is not None else None,
        on_progress=lambda done, wanted: None,
        algorithm=ValueConfig(batch_trajectories=100, patience=patience),
        max_tokens_per_micro_batch=30,
        row_costs=lambda lengths: [float(n) for n in lengths],
        eval_every=1,
        seed=0,
    )


@pytest.mark.parametrize(
    ("offsets", "done", "kept"),
    [
        ([0.9, 0.5, 0.6, 0.4, 0.7, 0.8, 0.3], 5, [6, 5, 3]),  # two in a row no lower than 0.4
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], 6, [6, 5, 4, 3, 2, 1, 0]),
        ([0.1] * 7, 2, [6]),
    ],
)
def test_it_stops_when_the_held_out_error_falls_no_more_and_keeps_the_best(
    stored, tmp_path, offsets, done, kept
):
    found = []
    loop = loop_of(stored, ScriptedCritic(offsets), tmp_path, kept=found)
    assert loop.run(first_step=0, steps=6) == done
    assert found == kept
    errors = series(loop.metrics.history, "value/squared_error", event=VALUES)
    assert errors[0] == (0, pytest.approx(offsets[0] ** 2))


def test_held_out_tasks_are_in_no_batch(stored, tmp_path):
    critic = ScriptedCritic([0.0] * 4)
    loop = loop_of(stored, critic, tmp_path, patience=0)
    assert loop.run(first_step=0, steps=3) == 3
    held_out = {t.traces[0].token_ids[0] for t in stored.load(loop.held_out)}
    trained = {token for batch in critic.trained for token in batch}
    assert len(trained) + len(held_out) == 40
    assert not trained & held_out


def test_what_was_measured_before_a_stop_still_counts_after_it(stored, tmp_path):
    """A run that goes on after step 1 knows its best error, and does not begin anew."""
    first = loop_of(stored, ScriptedCritic([0.9, 0.2]), tmp_path)
    assert first.run(first_step=0, steps=1) == 1
    first.metrics.close()
    kept = []
    second = loop_of(stored, ScriptedCritic([0.5, 0.6]), tmp_path, kept=kept, after_step=1)
    assert second.run(first_step=1, steps=6) == 3
    assert kept == []


def test_an_update_that_is_not_finite_ends_the_run(stored, tmp_path):
    loop = loop_of(stored, ScriptedCritic([0.0], skips=True), tmp_path)
    with pytest.raises(RunError, match=r"step 1: .*trainer.critic.lr"):
        loop.run(first_step=0, steps=3)
