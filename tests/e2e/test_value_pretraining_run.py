"""From a run's stored trajectories to a critic of another size, and on to PPO with it: the real stack."""

import json
import signal
import subprocess
import sys

import pytest
from tiny_run import TinyRun

COMMAND = (sys.executable, "-m", "rlframe.cli.main", "train")
BINS = ("algorithm.value_loss=hl_gauss", "algorithm.value_bins=41")


def train(*overrides, expect=0) -> str:
    done = subprocess.run(
        [*COMMAND, *overrides, "logging=quiet", "cluster.min_memory_gib=1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stderr
    return done.stderr if expect else done.stdout


def events(directory, event):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_critic_learns_offline_goes_on_after_a_kill_and_begins_a_ppo_run(tmp_path, warm_start):
    source = TinyRun(tmp_path / "source", warm_start, extra=("steps=4",))
    try:
        source.start()
        assert source.finish() == 0, source.stderr
    finally:
        source.end()

    small = tmp_path / "small"
    train(
        *("experiment=sft_tiny", "steps=1", f"run_dir={small}", f"model.tokenizer={warm_start}"),
        *("model.hf_config.num_hidden_layers=1", "model.hf_config.intermediate_size=64"),
    )
    pretraining = (
        *("experiment=value_pretrain", f"run_dir={tmp_path / 'value'}", f"model.path={warm_start}"),
        *(f"algorithm.source_runs=[{source.directory}]", f"trainer.critic.path={small / 'hf'}"),
        *("steps=12", "algorithm.batch_trajectories=16", "algorithm.held_out_share=0.25"),
        *("algorithm.patience=0", "logging.eval_every=4", "trainer.checkpoint_every=2", *BINS),
    )
    killed = TinyRun(tmp_path / "value", warm_start)
    killed.process = subprocess.Popen(
        [*COMMAND, *pretraining, "logging=quiet", "cluster.min_memory_gib=1"],
        stdout=(tmp_path / "value.stdout").open("wb"),
        stderr=(tmp_path / "value.stderr").open("wb"),
    )
    try:
        killed.wait_for_step(5)
        killed.signal(signal.SIGKILL)
        killed.process.wait()
        assert killed.orphans() == []
    finally:
        killed.end()
    train(*pretraining)
    value = tmp_path / "value"
    assert [line["step"] for line in events(value, "step")] == list(range(1, 13))
    measured = events(value, "held_out_values")
    assert [line["step"] for line in measured] == [0, 4, 8, 12]
    assert {"value/explained_variance", "value/bias_early", "value/bias_late"} <= measured[0].keys()
    errors = [line["value/squared_error"] for line in measured]
    assert min(errors) < errors[0]
    described = json.loads((value / "hf" / "config.json").read_text())
    assert (described["num_hidden_layers"], described["value_bins"]["count"]) == (1, 41)
    assert (value / "reward.png").exists()
    assert (value / "hf" / "tokenizer.json").exists()

    critic = f"trainer.critic.path={value / 'hf'}"
    refused = train("experiment=smoke", f"model.path={warm_start}", critic, expect=2)
    assert "its value head gives 41 bins" in refused
    run = TinyRun(
        tmp_path / "ppo",
        warm_start,
        extra=("steps=2", critic, "trainer.critic.layout.data=2", *BINS),
    )
    try:
        run.start()
        assert run.finish() == 0, run.stderr
    finally:
        run.end()
    first = run.metrics()[1]
    assert first["critic/beyond_range"] == 0.0
    assert first["critic/grad_norm"] > 0
    # The kept critic is what PPO begins with: its bias is what was measured, not a new head's.
    kept, new = measured[-1]["value/bias"], measured[0]["value/bias"]
    assert abs(first["critic/value_bias"] - kept) < abs(new - kept) / 2
