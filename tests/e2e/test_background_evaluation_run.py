"""Held-out attempts in the background of a real run: one version an evaluation, while the steps go on."""

import json
import sqlite3

import pytest
from tiny_run import STEPS, TinyRun

from rlframe.store import TrajectoryStore

HELD_OUT = 96


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steps_go_on_beside_an_evaluation_of_one_version(tmp_path, warm_start):
    extra = (
        "rollout.eval_engines=1",
        f"env.held_out={HELD_OUT}",
        "logging.eval_every=1",
        "rollout.max_concurrency=8",
    )
    run = TinyRun(tmp_path / "run", warm_start, extra=extra)
    try:
        run.start()
        assert run.finish() == 0, run.stderr
        assert run.orphans() == []
        assert run.shared_memory() == []
    finally:
        run.end()

    lines = [json.loads(t) for t in (run.directory / "metrics.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line for line in lines if line["event"] == "held_out"}
    assert {0, STEPS} <= evaluated.keys()
    assert all(line["evaluation/strangers"] == 0 for line in evaluated.values())

    store = TrajectoryStore(run.directory / "evaluations.sqlite", read_only=True)
    seen: dict[int, int] = {}
    for trajectory in store.all():
        version = int(trajectory.id.split("/")[1])
        seen[version] = seen.get(version, 0) + 1
        for trace in trajectory.traces:
            assert set(trace.versions[trace.loss_mask].tolist()) <= {version}, trajectory.id
    store.close()
    assert seen == dict.fromkeys(evaluated, HELD_OUT)

    stepped = {line["step"]: line["unix_s"] for line in lines if line["event"] == "step"}
    with sqlite3.connect(run.directory / "evaluations.sqlite") as file:
        last_ended = dict(
            file.execute(
                "SELECT CAST(substr(id, 6) AS INTEGER), max(created_s) FROM trajectories GROUP BY 1"
            ).fetchall()
        )
    beside = [v for v, ended in last_ended.items() if v < STEPS and ended > stepped[v + 1]]
    assert beside, "no attempt ended after the step that followed its version: nothing ran beside"
    assert set(run.trained().values()) == {1}
