"""Packing traces into micro-batches: the cap, their number, how long ranks wait for each other, the time.

    python benchmarks/packing.py            # docs/results/packing.json and packing.png

Rows are lognormal lengths (median 2,000 tokens, sigma 1, at most 32,768 = the cap), five seeds a size;
verl 0.9.1's balancer packs the same rows in the same run. Work is a row's length, plus its square / 24,576
in the column `work`: verl's own estimate, so that both balance the same thing.

lock-step efficiency = all work / (ranks x the sum over steps of the largest rank's work): 1 where no rank
waits for another inside a step. imbalance = the busiest rank's work over the mean, less one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, write_result
from benchmarks.peers.verl_functions import VerlFunctions
from rlframe.packing import aligned_bound, plan

CAP = 32_768
SIZES = ((512, 8), (4_096, 64), (16_384, 128))
SEEDS = range(5)
LONGEST = {"tokens": CAP, "quadratic": CAP // 2}
"""With quadratic work, one row of the cap's length is more than a full micro-batch: nobody's to balance."""
Plan = Sequence[Sequence[Sequence[int]]]


def lengths_of(rows: int, seed: int, longest: int) -> list[int]:
    drawn = np.random.default_rng(seed).lognormal(np.log(2_000), 1.0, rows)
    return np.clip(drawn, 16, longest).astype(int).tolist()


def measure(
    make: Callable[[], Plan], lengths: Sequence[int], costs: Sequence[float]
) -> dict[str, Any]:
    began = time.process_time()
    planned = make()
    seconds = time.process_time() - began
    tokens = [[sum(lengths[r] for r in batch) for batch in rank] for rank in planned]
    work = np.array([[sum(costs[r] for r in batch) for batch in rank] for rank in planned])
    assert sorted(r for rank in planned for batch in rank for r in batch) == list(
        range(len(lengths))
    )
    ranks = len(planned)
    return {
        "cpu_seconds": seconds,
        "micro_batches": sum(map(len, planned)),
        "bound": aligned_bound(lengths, data_parallel=ranks, cap=CAP) * ranks,
        "over_cap": sum(n > CAP for rank in tokens for n in rank),
        "lock_step": work.sum() / (ranks * work.max(axis=0).sum()),
        "imbalance": work.sum(axis=1).max() / work.sum(axis=1).mean() - 1,
    }


def main() -> None:
    verl = VerlFunctions.load()
    rows: list[dict[str, Any]] = []
    for work, longest in LONGEST.items():
        for count, ranks in SIZES:
            found: dict[str, list[dict[str, Any]]] = {"rlframe": [], "verl": []}
            for seed in SEEDS:
                lengths = lengths_of(count, seed, longest)
                square = 1 / 24_576 if work == "quadratic" else 0.0
                costs = [n + square * n * n for n in lengths]

                def ours(
                    lengths: list[int] = lengths, costs: list[float] = costs, ranks: int = ranks
                ) -> Plan:
                    made = plan(lengths, data_parallel=ranks, max_tokens=CAP, costs=costs)
                    return made.micro_batches

                def theirs(lengths: list[int] = lengths, ranks: int = ranks) -> Plan:
                    return verl.plan(lengths, ranks=ranks, cap=CAP)

                found["rlframe"].append(measure(ours, lengths, costs))
                found["verl"].append(measure(theirs, lengths, costs))
            for side, runs in found.items():
                rows.append(summary(side, count, ranks, work, runs))
                print(rows[-1], flush=True)
    write_result(
        "packing",
        rows=rows,
        note=f"cap {CAP} tokens; means over 5 seeds, times medians, worst `max`",
    )
    draw(rows)


def summary(
    side: str, count: int, ranks: int, work: str, runs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "side": side,
        "traces": count,
        "ranks": ranks,
        "work": work,
        "cpu_seconds": round(float(np.median([r["cpu_seconds"] for r in runs])), 4),
        "micro_batches": sum(r["micro_batches"] for r in runs),
        "aligned_bound": sum(r["bound"] for r in runs),
        "over_cap": sum(r["over_cap"] for r in runs),
        "lock_step_efficiency": round(float(np.mean([r["lock_step"] for r in runs])), 4),
        "lock_step_worst": round(float(min(r["lock_step"] for r in runs)), 4),
        "imbalance_worst": round(float(max(r["imbalance"] for r in runs)), 5),
    }


def draw(rows: Sequence[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    shown = [r for r in rows if r["work"] == "tokens"]
    labels = [f"{count:,}\non {ranks}" for count, ranks in SIZES]
    for offset, side in ((-0.2, "rlframe"), (0.2, "verl")):
        own = [r for r in shown if r["side"] == side]
        places = np.arange(len(own)) + offset
        panels[0].bar(places, [r["lock_step_efficiency"] for r in own], 0.4, label=side)
        panels[1].bar(
            places, [r["micro_batches"] / r["aligned_bound"] for r in own], 0.4, label=side
        )
        panels[2].bar(places, [r["cpu_seconds"] for r in own], 0.4, label=side)
    titles = ("lock-step efficiency", "micro-batches / aligned bound", "CPU seconds")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
        panel.set_xticks(range(len(labels)), labels)
    panels[0].set_ylim(0.5, 1.01)
    panels[1].set_ylim(0.9, None)
    panels[2].set_yscale("log")
    panels[0].set_xlabel("traces on data-parallel ranks")
    panels[0].legend(loc="lower right")
    figure.savefig(RESULTS / "packing.png", dpi=120)


if __name__ == "__main__":
    main()
