"""Bad steps: what makes one, which traces are named, and when a run stops."""

import json

import numpy as np
import pytest

from rlframe import bad_steps
from rlframe.bad_steps import BadSteps
from rlframe.errors import RunError
from rlframe.statistics import Gap
from rlframe.types import Reward, Status, Trace, Trajectory

GOOD = {
    f"{role}/{name}": value
    for role in ("policy", "critic")
    for name, value in (("skipped", 0.0), ("grad_norm", 0.5), ("loss", 0.1))
}


def trajectory(name: str, *lengths: int) -> Trajectory:
    traces = []
    for length in lengths:
        mask = np.arange(length) > 0
        logprobs = np.where(mask, -1, 0).astype(np.float32)
        versions = np.where(mask, 0, -1).astype(np.int32)
        traces.append(Trace(np.arange(length, dtype=np.int32), mask, logprobs, versions))
    return Trajectory(name, name, "d", Status.COMPLETED, tuple(traces), (Reward(1.0),))


@pytest.mark.parametrize(("mean", "bad"), [(0.05, False), (0.2, True), (float("nan"), True)])
def test_a_gap_beyond_the_limit_is_bad_and_so_is_one_that_is_no_number(mean, bad):
    assert bool(bad_steps.gap_reason(Gap(mean, mean), limit=0.1)) == bad


def test_left_out_updates_are_named_by_role():
    assert bad_steps.update_reasons(GOOD) == []
    (reason,) = bad_steps.update_reasons({**GOOD, "critic/skipped": 0.25, "critic/grad_norm": 90.0})
    assert reason.startswith("critic: 25%")
    assert "gradient norm 90" in reason
    assert bad_steps.update_reasons({"sft/loss": 1.0}) == []


def test_the_worst_traces_come_first_and_no_number_is_worse_than_any():
    batch = [trajectory("a", 3, 4), trajectory("b", 5)]
    read = [np.where(np.arange(n) > 0, -1, 0).astype(np.float32) for n in (3, 4, 5)]
    read[0][1] -= 0.5
    read[2][2] = np.nan
    worst = bad_steps.worst_traces(batch, read)
    assert [(w["trajectory"], w["trace"]) for w in worst] == [("b", 0), ("a", 0), ("a", 1)]
    assert worst[0]["mean_gap"] is None
    assert worst[1]["mean_gap"] == 0.25
    assert worst[1]["largest_gap"] == 0.5


def test_stop_ends_the_run_and_keeps_the_note(tmp_path):
    steps = BadSteps("stop", max_in_a_row=3, directory=tmp_path / "bad_steps")
    with pytest.raises(RunError, match=r"step 7: why; .*replay .* 7"):
        steps.bad(7, ["why", "and why"], [{"trajectory": "a"}])
    note = json.loads((tmp_path / "bad_steps" / "000007.json").read_text())
    assert note == {
        "step": 7,
        "reasons": ["why", "and why"],
        "worst_traces": [{"trajectory": "a"}],
    }


def test_skip_goes_over_as_many_in_a_row_as_allowed(tmp_path):
    steps = BadSteps("skip", max_in_a_row=2, directory=tmp_path)
    for number in (1, 2):
        steps.bad(number, ["why"], [])
    steps.good()
    for number in (4, 5):
        steps.bad(number, ["why"], [])
    with pytest.raises(RunError, match=r"number 3 in a row .*algorithm\.max_bad_steps=2"):
        steps.bad(6, ["why"], [])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"00000{n}.json" for n in (1, 2, 4, 5, 6)]
