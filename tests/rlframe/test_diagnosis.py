"""A step's numbers by place: thirds of the actions, sub-traces, lags."""

from dataclasses import replace

import numpy as np
import pytest

from rlframe.batch import bare_rows
from rlframe.diagnosis import effective_batch, of_positions, of_values, staleness_shares
from rlframe.types import Status, Trace, Trajectory


def trace(mask, versions=None) -> Trace:
    mask = np.array(mask, bool)
    versions = np.where(mask, 0, -1) if versions is None else np.array(versions)
    return Trace(
        np.arange(len(mask), dtype=np.int32), mask,
        np.where(mask, -1, 0).astype(np.float32), versions.astype(np.int32),
    )  # fmt: skip


def trajectory(*traces) -> Trajectory:
    return Trajectory("t", "t", "d", Status.COMPLETED, traces)


def test_thirds_are_of_a_trajectorys_actions_over_its_traces():
    t = trajectory(trace([0, 1, 0, 1]), trace([0, 1, 1, 1, 1]))
    first, second = bare_rows(t.traces)
    first = replace(first, old_logprobs=np.array([0, -1.5, 9, -1.5], np.float32))
    second = replace(second, old_logprobs=np.array([0, -1, -1, -3, -1], np.float32))
    first = replace(first, old_values=np.array([0, 1, 9, 1], np.float32))
    found = of_positions([t], [first, second], has_critic=True)
    assert [found[f"gap/{k}"] for k in ("early", "middle", "late")] == pytest.approx([0.5, 0, 1])
    assert found["critic/bias_early"] == pytest.approx(1.0)
    assert found["critic/bias_trace_0"] == pytest.approx(1.0)
    assert found["critic/bias_trace_1"] == 0.0


def test_effective_batch_counts_equally_loud_actions():
    a, b = trajectory(trace([0, 1, 1, 1, 1])), trajectory(trace([0, 1]))
    rows = bare_rows([*a.traces, *b.traces])
    rows[0] = replace(rows[0], advantages=np.array([7, 2, -2, 0, 0], np.float32))
    found = effective_batch(rows, [a, b])
    assert found == {"batch/effective_actions": 2.0, "batch/learning_trajectories": 0.5}


def test_lags_are_shares_of_the_actions():
    t = trajectory(trace([0, 1, 1, 1, 1], versions=[-1, 3, 4, 4, 4]))
    assert staleness_shares([t], version=4) == {"staleness/lag_0": 0.75, "staleness/lag_1": 0.25}


def test_explained_variance_by_place_is_that_places_own():
    """The first sub-trace is predicted exactly, the second not at all; the third's returns do not vary."""
    t = trajectory(trace([0, 1, 1]), trace([0, 1, 1]), trace([0, 1, 1]))
    rows = [
        replace(row, returns=np.array(returns, np.float32))
        for row, returns in zip(bare_rows(t.traces), ([0, 1, 3], [0, 1, 3], [0, 2, 2]), strict=True)
    ]
    values = [np.array(v, np.float32) for v in ([9, 1, 3], [9, 2, 2], [9, 2, 2])]
    found = of_values([t], rows, values)
    assert found["explained_variance_trace_0"] == 1.0
    assert found["explained_variance_trace_1"] == 0.0
    assert "explained_variance_trace_2" not in found
    assert [found[f"bias_{k}"] for k in ("trace_0", "trace_1", "trace_2")] == [0.0, 0.0, 0.0]
    assert found["explained_variance_early"] == 1.0
    assert found["explained_variance_middle"] == 0.0
