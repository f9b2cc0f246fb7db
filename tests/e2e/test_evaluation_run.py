"""`rlframe eval` on the real stack: killed and gone on with, refused under other settings, compared."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPEATS, TASKS = 8, 24
ARGUMENTS = (
    "eval=smoke",
    f"eval.repeats={REPEATS}",
    f"env.held_out={TASKS}",
    "rollout.max_concurrency=4",
    "cluster.min_memory_gib=1",
)
TIMEOUT_S = 300.0
POLL_S = 0.05


def command(directory: Path, model: Path, *extra: str) -> list[str]:
    own = (f"run_dir={directory}", f"model.path={model}", *extra)
    return [sys.executable, "-m", "rlframe.cli.main", "eval", *ARGUMENTS, *own]


def evaluate(directory: Path, model: Path, *extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(directory, model, *extra), capture_output=True, text=True, timeout=TIMEOUT_S
    )


def stored(directory: Path) -> dict[str, tuple]:
    """What is in the store, by id: when it was put there, and what it scored."""
    file = directory / "trajectories.sqlite"
    if not file.exists():
        return {}
    try:
        with sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True) as store:
            rows = store.execute("SELECT id, created_s, reward, status FROM trajectories")
            return {row[0]: row[1:] for row in rows.fetchall()}
    except sqlite3.OperationalError:  # being created
        return {}


def kill_after(attempts: int, directory: Path, model: Path) -> None:
    """`kill -9` of the driver when so many attempts are stored; returns when all of it is gone."""
    process = subprocess.Popen(
        command(directory, model),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + TIMEOUT_S
    while len(stored(directory)) < attempts:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30.0)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_evaluation_is_killed_gone_on_with_and_compared(tmp_path, warm_start):
    a = tmp_path / "a"
    kill_after(30, a, warm_start)
    before = stored(a)
    assert 30 <= len(before) < REPEATS * TASKS
    assert not (a / "eval.json").exists()

    refused = evaluate(a, warm_start, "rollout.sampling.temperature=0.5", "rollout.engines=2")
    assert refused.returncode == 2
    assert "rollout.sampling.temperature: 1 and 0.5" in refused.stderr
    assert "rollout.engines" not in refused.stderr, "how many engines there are is no setting"

    ended = evaluate(a, warm_start)
    assert ended.returncode == 0, ended.stderr
    after = stored(a)
    assert {i: after[i] for i in before} == before, "an attempt that had ended was touched"
    assert len(after) == REPEATS * TASKS
    assert f"{len(before)} of {REPEATS * TASKS} are there already" in ended.stdout

    result = json.loads((a / "eval.json").read_text())
    total = result["total"]
    rewards = [reward for _, reward, _ in after.values()]
    assert total["mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert total["pass_at"]["1"]["value"] == pytest.approx(
        sum(r >= 1.0 for r in rewards) / len(rewards)
    )
    assert total["infra_failure_rate"] == 0.0
    assert result["weight_version"] == 0
    assert result["engine_seconds"] > 0
    assert (a / "eval.png").stat().st_size > 1000

    again = evaluate(a, warm_start)
    assert again.returncode == 0, again.stderr
    assert "nothing is missing" in again.stdout
    assert json.loads((a / "eval.json").read_text()) == result

    other = json.loads(json.dumps(result))
    other["pinned"]["rollout.max_turns"] = 9
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "eval.json").write_text(json.dumps(other))
    compared = [sys.executable, "-m", "rlframe.cli.main", "eval", "compare", str(a)]
    differs = subprocess.run([*compared, str(tmp_path / "b")], capture_output=True, text=True)
    assert differs.returncode == 2
    assert "rollout.max_turns: 2 and 9" in differs.stderr
    same = subprocess.run(
        [*compared, str(tmp_path / "b"), "--despite", "rollout.max_turns"],
        capture_output=True,
        text=True,
    )
    assert same.returncode == 0, same.stderr
    assert "+0.000" in same.stdout
