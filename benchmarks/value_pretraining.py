"""What value pretraining is worth to the first steps of the smoke job.

    rlframe train experiment=sft_tiny
    rlframe train experiment=smoke name=smoke_0
    python -m benchmarks.value_pretraining [--seeds 2]

One critic a value loss learns from what runs/smoke_0 stored while its policy was still the warm start (its first
five steps train the critic alone: `algorithm.until_version=4`). Then PPO begins with each of them, and
with a new critic, on tasks that no critic has seen (other seeds); for five steps the critic alone learns, so that
the figures are of one policy. Writes docs/results/value_pretrain.json and .png. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.arms import COLOURS, Study
from benchmarks.harness import RESULTS, ROOT, write_result
from rlframe.metrics import VALUES, Line, read, series

RUNS = ROOT / "runs" / "value_pretrain_study"
LOSSES = ("mse", "hl_gauss")
WARM_UP = 5
PRETRAINING = (
    "experiment=value_pretrain",
    f"algorithm.until_version={WARM_UP - 1}",
    "steps=60",
    "logging.eval_every=10",
    "logging.live=off",
    "logging.wandb=off",
    "trainer.start_timeout_s=900",
)
PLACES = ("early", "middle", "late")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="PPO runs of every arm")
    given = parser.parse_args()
    pretrained = {loss: pretrain(loss) for loss in LOSSES}
    study = Study(
        "value_pretrain_study/ppo",
        experiment="smoke",
        arms={"new_critic": [], **{f"pretrained_{loss}": begins_with(loss) for loss in LOSSES}},
        seeds=range(1, 1 + given.seeds),
        shared=[
            f"algorithm.critic_warmup_steps={WARM_UP}",
            f"steps={WARM_UP + 1}",
            "logging.eval_every=0",
            "logging.min_reward_rise=0",
            "env.held_out=8",
            "trainer.checkpoint_every=0",
            "trainer.start_timeout_s=900",
            "rollout.start_timeout_s=900",
        ],
    )
    study.run()
    rows = [offline(loss, history) for loss, history in pretrained.items()]
    rows += [first_steps(study, arm) for arm in study.arms]
    for row in rows:
        print(row)
    write_result("value_pretrain", rows, note="seeds: explained variance at step 1 of each PPO run")
    plot(pretrained, study, RESULTS / "value_pretrain.png")


def directory(loss: str) -> Path:
    return RUNS / loss


def pretrain(loss: str) -> list[Line]:
    if not (directory(loss) / "summary.json").exists():
        command = [sys.executable, "-m", "rlframe.cli.main", "train", *PRETRAINING]
        command += [f"algorithm.value_loss={loss}", f"run_dir={directory(loss)}"]
        subprocess.run(command, check=True, cwd=ROOT)
    return read(directory(loss) / "metrics.jsonl")


def begins_with(loss: str) -> list[str]:
    return [f"trainer.critic.path={directory(loss) / 'hf'}", f"algorithm.value_loss={loss}"]


def offline(loss: str, history: list[Line]) -> dict[str, Any]:
    """Held out: before, and with the weights that were kept."""
    found = [line for line in history if line["event"] == VALUES]
    best = min(found, key=lambda line: float(line["value/squared_error"]))
    return {
        "side": f"offline_{loss}",
        "explained_variance_before": round(found[0]["value/explained_variance"], 3),
        "explained_variance_after": round(best["value/explained_variance"], 3),
        "squared_error_before": round(found[0]["value/squared_error"], 4),
        "squared_error_after": round(best["value/squared_error"], 4),
        **{f"bias_{place}": round(best[f"value/bias_{place}"], 3) for place in PLACES},
        "step": best["step"],
        "seconds": round(sum(line.get("time/total_s") or 0.0 for line in history)),
    }


def first_steps(study: Study, arm: str) -> dict[str, Any]:
    curves = [explained(study, arm, seed) for seed in study.seeds]
    biases = [
        dict(series(study.history(arm, seed), "critic/value_bias"))[1] for seed in study.seeds
    ]
    return {
        "side": arm,
        "explained_variance_step_1": round(statistics.mean(curve[1] for curve in curves), 3),
        f"explained_variance_step_{WARM_UP + 1}": round(
            statistics.mean(curve[WARM_UP + 1] for curve in curves), 3
        ),
        "bias_step_1": round(statistics.mean(biases), 3),
        "seeds": [round(curve[1], 3) for curve in curves],
    }


def explained(study: Study, arm: str, seed: int) -> dict[int, float]:
    """Explained variance by step, before that step's update."""
    return dict(series(study.history(arm, seed), "critic/explained_variance"))


def plot(pretrained: dict[str, list[Line]], study: Study, path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = dict(zip(["new_critic", *LOSSES], COLOURS, strict=False))
    for loss, history in pretrained.items():
        points = series(history, "value/explained_variance", event=VALUES)
        left.plot(*zip(*points, strict=True), color=colours[loss], label=loss, marker="o", ms=3)
    left.set(xlabel="step of pretraining", ylabel="explained variance, held-out tasks")
    for arm in study.arms:
        colour = colours[arm.removeprefix("pretrained_")]
        for number, seed in enumerate(study.seeds):
            points = sorted(explained(study, arm, seed).items())
            label = arm.replace("_", " ", 1) if number == 0 else None
            right.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", ms=3)
    right.set(xlabel="step of PPO, the policy at rest", ylabel="explained variance, next batch")
    for axes in (left, right):
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.legend(frameon=False, fontsize=9)
        low = axes.get_ylim()[0]
        axes.set_ylim(max(low, -1.0), 1.0)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
