"""The SFT loop: which rows a step takes, and when it stops early."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.metrics import Metrics
from rlframe.sft import SftLoop, batch_indices
from rlframe.types import TrainRow


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(rows, batch, seed):
    steps = 2 * rows  # whole epochs, whatever the batch
    taken = [i for s in range(steps) for i in batch_indices(s, rows=rows, batch=batch, seed=seed)]
    epochs = np.array(taken).reshape(-1, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()


class Done:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


class ScriptedPolicy:
    """Learns nothing: its held-out losses are given. Stands in for the ranks."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def layout(self):
        return {"data": 1}

    def update(self, rows, plan, step):
        return Done({"loss": 1.0})

    def logprobs(self, rows, plan):
        loss = next(self.losses)
        return Done([np.full(len(r.token_ids), -loss, np.float32) for r in rows])


class NoWatcher:
    def after_step(self, step, logged):
        """Nobody looks."""


def a_row():
    mask = np.array([False, True, True])
    nothing = np.zeros(3, np.float32)
    return TrainRow(np.array([1, 2, 3], np.int32), mask, *[nothing] * 5)


@pytest.mark.parametrize(
    ("losses", "stops_at"),
    [
        ([0.1, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1], 6),  # one lucky evaluation is not enough
        ([0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 0.5], 3),
        ([0.5] * 8, 8),
    ],
)
def test_stops_when_the_mean_of_three_held_out_losses_is_low(tmp_path, losses, stops_at):
    loop = SftLoop(
        policy=ScriptedPolicy(losses),
        rows=[a_row()],
        held_out=[a_row()],
        metrics=Metrics(tmp_path / "metrics.jsonl"),
        watcher=NoWatcher(),
        batch_conversations=1,
        max_tokens_per_micro_batch=8,
        eval_every=1,
        stop_below_loss=0.2,
        seed=0,
    )
    assert loop.run(first_step=0, steps=8) == stops_at
