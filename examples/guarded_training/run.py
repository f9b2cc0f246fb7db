"""What a policy learns whose reward can be hacked: unwatched, with attempts ended at a hack, and guarded.

    python -m examples.guarded_training.run [--seeds 5] [--parallel 1]

Three arms, the same tasks, warm start and number of attempts (`ARMS`). A stopped study goes on where it
was. Writes docs/results/guarded_training.json and .png.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import COLOURS, Study
from benchmarks.harness import RESULTS, write_result
from examples.guarded_training.measures import MEASURES, Curve, collapsed, curves_of, final, start

ARMS = {
    "none": ["guard.action=watch"],
    "kill": ["guard.action=end", "guard.loss=train"],
    "guard": [],
}
TITLES = {
    "true_reward": "true reward (sealed cases)",
    "proxy_reward": "proxy reward (what trains)",
    "hack_rate": "hack attempts an attempt",
    "entropy": "entropy, nats a token",
}
Runs = dict[str, list[dict[str, Curve]]]
"""By arm, the curves of each seed."""


def main() -> None:
    study, parallel = Study.by_command_line(
        __doc__.splitlines()[0],
        name="guarded_training",
        experiment="guarded_training",
        arms=ARMS,
        shared=["model.path=runs/guarded_training/warm_start/hf"],
        folder=Path(__file__).parent,
    )
    study.warm_start("guarded_training_sft")
    study.run(parallel=parallel)
    runs = {arm: [curves_of(study.directory(arm, seed)) for seed in study.seeds] for arm in ARMS}
    rows = [row(arm, seeds) for arm, seeds in runs.items()]
    for one in rows:
        print(one)
    write_result("guarded_training", rows)
    plot(runs, RESULTS / "guarded_training.png")


def row(arm: str, seeds: list[dict[str, Curve]]) -> dict[str, Any]:
    """Means over the seeds at the end and at the start, and each seed's end."""
    ends = {name: [final(curves[name]) for curves in seeds] for name in MEASURES}
    return {
        "arm": arm,
        **{name: round(statistics.mean(ends[name]), 3) for name in MEASURES},
        "collapse_rate": statistics.mean(collapsed(curves["true_reward"]) for curves in seeds),
        "start": {
            name: round(statistics.mean(start(c[name]) for c in seeds), 3) for name in MEASURES
        },
        "seeds": {name: [round(value, 3) for value in ends[name]] for name in MEASURES},
    }


def plot(runs: Runs, path: Path) -> None:
    """A panel a measure: the mean over the seeds, and the band from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    for axes, name in zip(panels.flat, MEASURES, strict=True):
        for (arm, seeds), colour in zip(runs.items(), COLOURS[1::-1] + COLOURS[2:], strict=False):
            values = np.array([curves[name] for curves in seeds])  # [seeds, steps]
            places = np.arange(1, values.shape[1] + 1)
            axes.plot(places, values.mean(0), color=colour, label=arm)
            axes.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.15)
        axes.set_title(TITLES[name], fontsize=10)
        axes.set_ylim(bottom=0)
        axes.grid(color="#e6e6e6", linewidth=0.8)
    for axes in panels[1]:
        axes.set_xlabel("step")
    panels[0][0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
