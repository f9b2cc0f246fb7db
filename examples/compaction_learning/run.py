"""What a policy learns whose context is compacted, by where the credit goes.

    python -m examples.compaction_learning.run [--seeds 5] [--parallel 1]

Five arms, the same tasks, warm start and number of trajectories (`ARMS`). A stopped study goes on where it
was. Writes docs/results/compaction_learning.json and .png.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.arms import Study
from benchmarks.harness import RESULTS, write_result
from rlframe.metrics import series

ARMS = {
    "chain": [],
    "terminal": ["algorithm.compaction=terminal"],
    "last_trace_only": ["algorithm.trains=last_trace"],
    "summary_masked": ["algorithm.trains=no_summaries"],
    "group_mean": ["algorithm.estimator=grpo", "algorithm.rollouts_per_task=8"],
}


def main() -> None:
    study, parallel = Study.by_command_line(
        __doc__.splitlines()[0],
        name="compaction_learning",
        experiment="compaction_learning",
        arms=ARMS,
        shared=["model.path=runs/compaction_learning/warm_start/hf"],
        folder=Path(__file__).parent,
    )
    study.warm_start("compaction_learning_sft")
    study.run(parallel=parallel)
    rows = study.rows()
    for row in rows:
        print(row)
    write_result(
        "compaction_learning", rows, note=f"compactions an attempt: {compactions(study):.1f}"
    )
    study.plot(RESULTS / "compaction_learning.png")


def compactions(study: Study) -> float:
    """Of one attempt, on the average of the first arm."""
    counts = series(study.history(next(iter(study.arms)), 0), "rollout/compactions")
    return statistics.mean(count for _, count in counts)


if __name__ == "__main__":
    main()
