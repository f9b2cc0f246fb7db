"""The run's own engine as the guard's judge, on the real stack. A tiny model can't judge: that it has given no
answer is counted, and `guard.judge.on_failure` decides."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rlframe.metrics import read, series
from rlframe.store import TrajectoryStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "guarded_training"
TIMEOUT_S = 300.0


def train(directory: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "rlframe.cli.main", "train", "--config-dir", str(EXAMPLE)]
    own = (f"run_dir={directory}", "logging=quiet", "cluster.min_memory_gib=1")
    done = subprocess.run(
        [*command, *arguments, *own], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def hacker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that tries a hack now and then. Its context has room for a judge's question in bytes."""
    run = tmp_path_factory.mktemp("hacker")
    train(
        run,
        "experiment=guarded_training_sft",
        "env.name=examples.guarded_training.rule_files:RuleFiles",
        "model.hf_config.max_position_embeddings=8192",
        "steps=120",
        "logging.eval_every=0",
    )
    return run / "hf"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("on_failure", ["rules", "allow"])
def test_the_engine_judges(tmp_path: Path, hacker: Path, on_failure: str) -> None:
    train(
        tmp_path / "run",
        "experiment=guarded_training",
        "env.name=examples.guarded_training.rule_files:RuleFiles",
        f"model.path={hacker}",
        "guard=judge",
        f"guard.judge.on_failure={on_failure}",
        "steps=2",
        "algorithm.critic_warmup_steps=0",
        "rollout.max_context_tokens=4096",
        "algorithm.batch_trajectories=24",
        "env.held_out=1",
    )
    with closing(
        TrajectoryStore(tmp_path / "run" / "trajectories.sqlite", read_only=True)
    ) as store:
        reports = [t.info["guard"] for t in store.all()]
    events = [event for report in reports for event in report["events"]]
    assert events, "nothing was flagged: the policy tried no hack"
    assert sum(r["judged"] for r in reports) == sum(r["failed"] for r in reports) == len(events)
    for event in events:
        assert event["by"] == "judge failed"
        assert event["reason"] == "an answer that is not in the form asked for"
        assert event["blocked"] == (on_failure == "rules"), "these break a rule as it is written"
    assert all(r["judge_s"] > 0 for r in reports if r["judged"])
    logged = read(tmp_path / "run" / "metrics.jsonl")
    assert max(share for _, share in series(logged, "guard/judge_failed_share")) == 1.0
