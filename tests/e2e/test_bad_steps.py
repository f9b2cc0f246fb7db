"""A whole run whose steps are bad, skipped or not, and what `rlframe replay` makes of it."""

import json
import subprocess
import sys

import pytest
from tiny_run import STEPS, TinyRun


def replay(directory, step: int) -> str:
    command = [sys.executable, "-m", "rlframe.cli.main", "replay", str(directory), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bad_step_stops_the_run_and_is_replayed_to_the_bit(tmp_path, warm_start):
    """Every gradient norm is above the limit: the first step stops; skipping goes on, weights unchanged."""
    limit = ("trainer.policy.grad_norm_limit=1e-9",)
    run = TinyRun(tmp_path / "run", warm_start, extra=limit)
    try:
        run.start()
        assert run.finish() == 1
        assert run.orphans() == []
    finally:
        run.end()
    # Step 1 is the critic's warm-up.
    assert "step 2: policy: 100% of the step's updates were left out" in run.stderr
    note = json.loads((run.directory / "bad_steps" / "000002.json").read_text())
    assert note["worst_traces"]
    assert "bad step: policy: 100%" in replay(run.directory, 2)

    skipping = (*limit, "algorithm.bad_step=skip", "algorithm.max_bad_steps=8")
    run = TinyRun(tmp_path / "run", warm_start, extra=skipping)
    try:
        run.start()
        assert run.finish() == 0, run.stderr
    finally:
        run.end()
    logged = run.metrics()
    assert sorted(logged) == list(range(1, STEPS + 1))
    assert all(logged[step]["policy/skipped"] == 1.0 for step in range(2, STEPS + 1))
    assert f"step {STEPS} again: every figure is the same" in replay(run.directory, STEPS)
