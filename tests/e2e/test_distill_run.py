"""Whole distillations: a teacher that is the student itself is at no distance; a resumed and a replayed step are the same."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

STEPS = 3
SAME, OTHER = ["aiw", "rotate_matrix"], ["manipulate_matrix", "spiral_matrix"]
ARGUMENTS = (
    "experiment=smoke",
    "algorithm=opd",
    "logging=quiet",
    f"steps={STEPS}",
    "algorithm.batch_trajectories=16",
    "algorithm.mini_batches=1",
    "algorithm.epochs=1",
    "algorithm.critic_warmup_steps=0",
    "env.held_out=8",
    "trainer.checkpoint_every=1",
    "logging.eval_every=0",
    "logging.min_reward_rise=0",
    "cluster.min_memory_gib=1",
)


def rlframe(*arguments):
    command = [sys.executable, "-m", "rlframe.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def teachers(tmp_path, warm_start):
    """The student itself, and one whose weights are shaken."""
    shaken = tmp_path / "shaken"
    shutil.copytree(warm_start, shaken)
    file = next(shaken.glob("*.safetensors"))
    rng = np.random.default_rng(0)
    tensors = {
        name: (t * (1 + 0.3 * rng.standard_normal(t.shape))).astype(t.dtype)
        for name, t in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    manifest = tmp_path / "teachers.yaml"
    listed = [
        {"name": "same", "checkpoint": str(warm_start), "domains": SAME},
        {"name": "other", "checkpoint": str(shaken), "domains": OTHER},
    ]
    manifest.write_text(yaml.safe_dump({"teachers": listed}))
    return manifest


def lines(directory, event):
    read = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in read if line["event"] == event}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "objective",
    [
        ("algorithm.teachers_on=ranks", "algorithm.objective=reverse_kl"),
        ("algorithm.teachers_on=engines", "algorithm.objective=sampled"),
    ],
)
def test_a_distillation_from_start_to_report(tmp_path, warm_start, teachers, objective):
    run = tmp_path / "run"
    arguments = (
        *ARGUMENTS,
        *objective,
        f"run_dir={run}",
        f"model.path={warm_start}",
        f"teachers.manifest={teachers}",
    )
    rlframe("distill", *arguments)
    before, after = (lines(run, "held_out")[step] for step in (0, STEPS))
    for domain in SAME:
        assert abs(before[f"teacher_kl/{domain}"]) < 1e-4
    for domain in OTHER:
        assert before[f"teacher_kl/{domain}"] > 0.01
    assert sorted(lines(run, "step")) == list(range(1, STEPS + 1))
    compared = json.loads((run / "comparison.json").read_text())
    assert list(compared) == ["same", "other", "weight average"]
    rows = json.loads((run / "distillation.json").read_text())["rows"]
    assert [row["domain"] for row in rows] == [*sorted([*SAME, *OTHER]), "mean"]
    for row in rows[:-1]:
        teacher = "same" if row["domain"] in SAME else "other"
        assert row["teacher"] == compared[teacher][row["domain"]]
        assert row["student"] == after[f"held_out/{row['domain']}"]
    for name in ("distillation.csv", "distillation.png", "hf/model.safetensors"):
        assert (run / name).exists()
    said = rlframe("replay", str(run), str(STEPS))
    assert f"step {STEPS} again: every figure is the same" in said, said
