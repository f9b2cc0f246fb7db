"""Figures: what counts and what does not, cost, and the rows that a comparison needs."""

import math

import numpy as np
import pytest
from evaluation_attempts import measured

from rlframe.evaluation.attempts import Slot
from rlframe.evaluation.measured import measure
from rlframe.evaluation.result import Prices, Rules, figures, per_task, summarise, versions
from rlframe.types import Reward, Status, Task, Trace, Trajectory

RULES = Rules(repeats=2, solved_from=1.0, task_faults="exclude")


def test_what_our_side_lost_is_never_a_zero():
    found = figures(
        [
            measured("s/a", 1.0),
            measured("s/a", 0.0, repeat=1, status=Status.INFRA_ERROR, error="engine 0\ntrace"),
            measured("s/b", 1.0),
            measured("s/b", 1.0, repeat=1),
        ],
        RULES,
    )
    assert found["mean"] == 1.0
    assert (found["attempts"], found["attempts_counted"]) == (4, 3)
    assert found["infra_failure_rate"] == 0.25
    assert found["pass_at"]["2"] == {
        "value": 1.0,
        "standard_error": pytest.approx(math.nan, nan_ok=True),
        "tasks": 1,
    }
    assert found["faults"] == [{"fault": "infrastructure", "reason": "engine 0", "attempts": 1}]


@pytest.mark.parametrize(("task_faults", "mean"), [("exclude", 1.0), ("zero", 0.5)])
def test_a_fault_of_the_task_is_left_out_or_a_zero(task_faults, mean):
    attempts = [
        measured("s/a", 1.0),
        measured("s/b", 0.7, status=Status.FAILED, error="verifier: KeyError"),
    ]
    rules = Rules(repeats=1, solved_from=1.0, task_faults=task_faults)
    found = figures(attempts, rules)
    assert found["mean"] == mean
    assert found["task_fault_rate"] == 0.5
    assert found["faults"][0]["fault"] == "task"


def test_the_truncated_count_and_are_reported():
    found = figures([measured("s/a", 0.0, status=Status.TRUNCATED_LENGTH), measured("s/b")], RULES)
    assert (found["mean"], found["truncation_rate"]) == (0.5, 0.5)
    assert found["statuses"] == {"completed": 1, "truncated_length": 1}


def test_cost_and_money():
    rules = Rules(2, 1.0, "exclude", Prices(prompt=2.0, sampled=10.0, engine_hour=3.0), engines=2)
    whole = summarise([measured("a/x"), measured("b/x")], rules, wall_s=1800.0)
    cost = whole["total"]["cost"]
    assert (cost["prompt_tokens"], cost["sampled_tokens"]) == (2000, 200)
    assert cost["money"] == pytest.approx(2000 * 2e-6 + 200 * 10e-6 + 2 * 0.5 * 3.0)
    halves = [s["cost"]["money"] for s in whole["suites"].values()]
    assert sum(halves) == pytest.approx(cost["money"])
    assert "money" not in figures([measured()], RULES)["cost"]


def test_suites_and_domains():
    attempts = [measured("a/x", 1.0), measured("a/y", 0.0, domain="e"), measured("b/x", 1.0)]
    whole = summarise(attempts, RULES, wall_s=0.0)
    assert whole["suites"]["a"]["mean"] == 0.5
    assert whole["suites"]["a"]["domains"]["e"]["mean"] == 0.0
    assert whole["total"]["tasks"] == 3


def test_rows_for_a_comparison():
    attempts = [
        measured("a/x", 0.5, repeat=1),
        measured("a/x", 1.0),
        measured("a/y", status=Status.INFRA_ERROR),
    ]
    rows = per_task(attempts, RULES)
    assert [row["scores"] for row in rows] == [[1.0, 0.5], []]
    assert rows[1]["statuses"] == ["infra_error"]


def test_an_attempt_is_measured_from_its_tokens():
    """Two calls: a prompt of 3 and 2 sampled; then 1 more read, and 1 sampled."""
    mask = np.array([0, 0, 0, 1, 1, 0, 1], bool)
    trace = Trace(
        token_ids=np.arange(7, dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        versions=np.where(mask, 3, -1).astype(np.int32),
    )
    whole = Trajectory(
        "eval/s/t/1",
        "s/t",
        "s/d",
        Status.COMPLETED,
        (trace,),
        (Reward(0.25), Reward(0.5)),
        info={"turns": 2, "seconds": 1.0, "tries": 2, "guard": {"blocked_turns": 1}},
    )
    found = measure(whole, Slot(Task("s/t", "s/d", ()), 1))
    assert (found.prompt_tokens, found.sampled_tokens) == (3 + 6, 3)
    assert (found.suite, found.domain, found.repeat) == ("s", "d", 1)
    assert (found.score, found.tries, found.versions) == (0.75, 2, (3,))
    assert versions([found]) == [3]
    again = figures([found, measured()], RULES)
    assert again["guard"] == {"blocked_turns": 1, "attempts_blocked": 1}
