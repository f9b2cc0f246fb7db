"""The same experiment in several arms, each over several seeds: runs, a table, learning curves with bands.

    study = Study("compaction_learning", experiment="compaction_learning", arms=ARMS, seeds=range(5), folder=here)
    study.run(parallel=1)
    rows = study.rows()                    # arm, final_reward, seeds, ...
    study.plot(path)

An arm is overrides of one Hydra experiment. A run that has ended is not made again: a study that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.harness import ROOT
from rlframe.metrics import HELD_OUT, read, series

FINAL_EVALUATIONS = 3
"""A run's final reward is the mean of its last so many evaluations: less noise than one has."""
COLOURS = ("#3b6fb6", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#444444")
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Study:
    name: str
    experiment: str
    arms: Mapping[str, Sequence[str]]
    """Overrides by arm; the first arm is what is advertised."""
    seeds: Sequence[int]
    shared: Sequence[str] = field(default_factory=tuple)
    """Overrides of every arm."""
    folder: Path | None = None
    """Holds `experiment/*.yaml` and the example's own Python files; None: `configs/` has the experiment."""

    @classmethod
    def by_command_line(cls, about: str, **fields: Any) -> tuple[Study, int]:
        """`--seeds` and `--parallel`: the study of that many seeds, and how many runs at the same time. `about`
        is what `--help` says; `fields` are the study's others."""
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--seeds", type=int, default=5, help="runs of every arm")
        parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
        given = parser.parse_args()
        return cls(seeds=range(given.seeds), **fields), given.parallel

    def directory(self, arm: str, seed: int) -> Path:
        return ROOT / "runs" / self.name / f"{arm}_{seed}"

    def warm_start(self, experiment: str) -> str:
        """Trains it unless that was done; the checkpoint's directory."""
        directory = ROOT / "runs" / self.name / "warm_start"
        self._train(directory, [f"experiment={experiment}"])
        return str(directory / "hf")

    def run(self, *, parallel: int = 1) -> None:
        """Seeds in turn and arms within them, so that a study that is cut short is a fair one."""
        todo = [(arm, seed) for seed in self.seeds for arm in self.arms]
        with ThreadPoolExecutor(parallel) as pool:
            done = pool.map(lambda item: self._one(*item), todo)
            for (arm, seed), reward in zip(todo, tqdm(done, total=len(todo)), strict=False):
                tqdm.write(f"{arm} seed {seed}: {reward:.3f}")

    def _one(self, arm: str, seed: int) -> float:
        overrides = [f"experiment={self.experiment}", f"seed={seed}", *self.shared, *self.arms[arm]]
        self._train(self.directory(arm, seed), overrides)
        return final_reward(self.curve(arm, seed))

    def _train(self, directory: Path, overrides: Sequence[str]) -> None:
        """In a process of its own; its output goes to a file beside the run's directory."""
        mark = directory.with_suffix(".json")
        wanted = {"overrides": list(overrides), "ended": True}
        before = json.loads(mark.read_text()) if mark.exists() else {}
        if before == wanted:
            return
        if before.get("overrides") != wanted["overrides"]:
            shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({**wanted, "ended": False}))
        command = [sys.executable, "-m", "rlframe.cli.main", "train"]
        command += ["--config-dir", str(self.folder)] if self.folder else []
        command += [*overrides, f"run_dir={directory}", "logging.live=off", "logging.wandb=off"]
        own = str(self.folder) if self.folder else ""
        paths = [own, str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with (directory.with_suffix(".log")).open("w") as console:
            ended = subprocess.run(
                command, stdout=console, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
            )
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: {console.name}")
        mark.write_text(json.dumps(wanted))

    def history(self, arm: str, seed: int) -> list[dict[str, Any]]:
        return read(self.directory(arm, seed) / "metrics.jsonl")

    def curve(self, arm: str, seed: int) -> Curve:
        """(step, held-out reward)"""
        history = self.history(arm, seed)
        return [(float(s), r) for s, r in series(history, "held_out/mean", event=HELD_OUT)]

    def across_tokens(self, arm: str, seed: int) -> Curve:
        """(tokens that the policy sampled in training, held-out reward)"""
        actions = series(self.history(arm, seed), "rollout/actions")
        sampled = dict(
            zip((s for s, _ in actions), np.cumsum([n for _, n in actions]), strict=True)
        )
        return [(float(sampled.get(int(s), 0)), r) for s, r in self.curve(arm, seed)]

    def rows(self) -> list[dict[str, Any]]:
        """One an arm: mean and standard deviation over the seeds, and each seed's value."""
        rows = []
        for arm in self.arms:
            curves = [self.curve(arm, seed) for seed in self.seeds]
            finals = [final_reward(curve) for curve in curves]
            rows.append(
                {
                    "arm": arm,
                    "start_reward": round(statistics.mean(curve[0][1] for curve in curves), 3),
                    "final_reward": round(statistics.mean(finals), 3),
                    "deviation": round(statistics.stdev(finals), 3) if len(finals) > 1 else 0.0,
                    "area": round(statistics.mean(map(area, curves)), 3),
                    "seeds": [round(value, 3) for value in finals],
                }
            )
        return rows

    def plot(self, path: Path, *, tokens: bool = False) -> None:
        """Mean held-out reward over the seeds, and the band from the lowest to the highest."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
        curve_of = self.across_tokens if tokens else self.curve
        for arm, colour in zip(self.arms, COLOURS, strict=False):
            curves = np.array([curve_of(arm, seed) for seed in self.seeds])  # [seeds, points, 2]
            places, rewards = curves[:, :, 0].mean(0), curves[:, :, 1]
            axes.plot(places, rewards.mean(0), color=colour, label=arm.replace("_", " "))
            axes.fill_between(places, rewards.min(0), rewards.max(0), color=colour, alpha=0.15)
        axes.set(xlabel="sampled tokens" if tokens else "step", ylim=(0, 1.02))
        axes.set_ylabel("held-out reward")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=150)


def final_reward(curve: Curve) -> float:
    return statistics.mean(reward for _, reward in curve[-FINAL_EVALUATIONS:])


def area(curve: Curve) -> float:
    """Mean held-out reward over the run: how fast it was learnt."""
    steps, rewards = zip(*curve, strict=True)
    return float(np.trapezoid(rewards, steps) / (steps[-1] - steps[0]))
