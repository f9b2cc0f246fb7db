"""One rollout a task with a critic, against groups of eight without, at the same number of sampled tokens.

    python -m examples.single_rollout_ppo.run [--seeds 5] [--steps 100] [--parallel 1]

The smoke job's puzzles, warm start and batches of 128 trajectories; only whose comparison makes the advantages
differs (`ARMS`). A stopped study goes on where it was. Writes docs/results/single_rollout_ppo.json and .png.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np

from benchmarks.arms import Study
from benchmarks.harness import RESULTS, write_result

ARMS = {
    "single_rollout_critic": [],
    "groups_of_eight": ["algorithm.estimator=grpo", "algorithm.rollouts_per_task=8"],
    "single_rollout_batch_mean": ["algorithm.estimator=reinforce_pp"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of every arm")
    parser.add_argument("--steps", type=int, default=100, help="of every run")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    given = parser.parse_args()
    study = Study(
        "single_rollout_ppo",
        experiment="smoke",
        arms=ARMS,
        seeds=range(given.seeds),
        shared=[
            "model.path=runs/single_rollout_ppo/warm_start/hf",
            f"steps={given.steps}",
            "logging.eval_every=10",
        ],
    )
    study.warm_start("sft_tiny")
    study.run(parallel=given.parallel)
    rows = [{**row, **at_equal_tokens(study, row["arm"])} for row in study.rows()]
    for row in rows:
        print(row)
    write_result("single_rollout_ppo", rows)
    study.plot(RESULTS / "single_rollout_ppo.png", tokens=True)


def at_equal_tokens(study: Study, arm: str) -> dict[str, Any]:
    """Held-out reward where the run that sampled least had ended, and at half of that."""
    ends = [study.across_tokens(a, s)[-1][0] for a in study.arms for s in study.seeds]
    budget = min(ends)
    found = {}
    for name, tokens in (("reward_at_budget", budget), ("reward_at_half", budget / 2)):
        curves = [np.array(study.across_tokens(arm, seed)) for seed in study.seeds]
        rewards = [float(np.interp(tokens, curve[:, 0], curve[:, 1])) for curve in curves]
        found[name] = round(statistics.mean(rewards), 3)
    return {"budget_tokens": round(budget), **found}


if __name__ == "__main__":
    main()
