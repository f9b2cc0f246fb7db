"""Twelve teachers on two engines: how much longer than with every teacher resident?

    python benchmarks/teacher_swaps.py measured [--rounds 5]
    python benchmarks/teacher_swaps.py simulated

`measured`: twelve tiny teachers of one shape, two real engines. A round scores the same traces twice: spread
over all twelve teachers, so that ten weights are swapped; and spread over the two teachers that
the engines have, so that none has to be (an engine that is done early may take the other's teacher, too, where
that is quicker: a swap that serves this side). Both compute the same, for the teachers differ in their numbers only.
That is stricter than a whole merge, in which rollouts and training take time, too. More engines than two would
not be faster here: there are two cores.

`simulated`: the scheduler's own code (`rollout.teachers.queues`, `schedule`) on a virtual clock, for teachers
of 744B parameters with swap times that others have published (see `SWAPS`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Round, interleaved, ratio, row, tree_cpu_seconds, write_result
from benchmarks.teacher_clock import Arrival, simulate
from benchmarks.teacher_engines import (
    collect,
    manifest_for,
    random_requests,
    running,
    two_engines_reserved,
)
from rlframe.teaching import ScoreRequest

TEACHERS, ENGINES = 12, 2
GOAL = 1.3
TRACES, TOKENS = 144, 256


def measured(rounds: int) -> list[dict[str, Any]]:
    from tests.tiny_models import save_tiny_qwen3

    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        teachers = {f"t{n}": save_tiny_qwen3(where / f"t{n}", seed=n) for n in range(TEACHERS)}
        manifest = manifest_for(teachers)
        with (
            two_engines_reserved(ENGINES) as options,
            running(manifest, options, where / "logs", tokens_in_flight=8192) as pool,
        ):
            number = 0
            loaded = list(teachers)[:ENGINES]

            def score(among: Sequence[str]) -> Round:
                nonlocal number
                number += 1
                requests: list[ScoreRequest] = []
                for at, name in enumerate(among):
                    count = TRACES // len(among)
                    requests += random_requests(name, count, seed=100 * number + at, length=TOKENS)
                began, cpu = time.perf_counter(), tree_cpu_seconds()
                pool.submit(requests)
                collect(pool, len(requests))
                seconds = time.perf_counter() - began
                tokens = sum(len(r.token_ids) for r in requests)
                return Round(seconds, tree_cpu_seconds() - cpu, tokens)

            swaps: list[dict[str, float]] = []
            helped: list[float] = []

            def swapping() -> Round:
                pool.metrics()
                done = score(list(teachers))
                swaps.append(pool.metrics())
                loaded[:] = [str(slot.loaded) for _, slot in pool._slots]
                return done

            def resident() -> Round:
                done = score(loaded)
                helped.append(pool.metrics()["swaps"])
                return done

            found = interleaved({"swapping": swapping, "resident": resident}, rounds=rounds)
    slower = 1 / ratio(found["swapping"], found["resident"])
    counted = swaps[-rounds:]
    more = {
        "swaps": statistics.median(m["swaps"] for m in counted),
        "swap_s": round(statistics.median(m["swap_s"] for m in counted), 4),
        "utilisation": round(statistics.median(m["utilisation"] for m in counted), 3),
    }
    print(f"with swaps {slower:.3f} times as long (goal: at most {GOAL})")
    return [
        row("twelve_on_two", found["swapping"], times_as_long=round(slower, 3), goal=GOAL, **more),
        row("resident", found["resident"], swaps=statistics.median(helped[-rounds:])),
    ]


SWAPS = {
    8.48: "miles, GLM-5 744B, RDMA p2p",
    14.36: "checkpoint-engine 0.2.0, Kimi-K2 1T fp8, 16 x H20",
    58.30: "miles, GLM-5 744B, NCCL broadcast",
}
"""Published times of bringing such weights into serving engines, in seconds."""


@dataclass(frozen=True)
class Merge:
    """One step of a merge of 744B models, as published of GLM-5 on 28 nodes of 8 H200 (prime-rl 0.6.0):
    256 rollouts in 5 minutes, 3.7 minutes of training."""

    rollouts: int = 256
    rollout_s: float = 300.0
    train_s: float = 222.0
    median_tokens: int = 20_000
    sigma: float = 0.8
    longest: int = 131_072
    active_parameters: float = 40e9
    gpus_per_engine: int = 8
    gpu_flops: float = 989e12
    utilised: float = 0.2
    student_gpus: int = 224

    @property
    def tokens_per_s(self) -> float:
        """Of one engine that only reads: 2 FLOPs a parameter and token, at a fifth of the GPUs' dense
        bfloat16 peak."""
        flops = 2 * self.active_parameters
        return self.gpus_per_engine * self.gpu_flops * self.utilised / flops

    def arrivals(self, generator: np.random.Generator) -> list[Arrival]:
        """A rollout is done when its tokens are, all at one speed; the longest take the whole time."""
        drawn = generator.lognormal(np.log(self.median_tokens), self.sigma, self.rollouts)
        lengths = np.minimum(drawn, self.longest).astype(int)
        domains = generator.integers(0, TEACHERS, self.rollouts)
        ends = self.rollout_s * lengths / lengths.max()
        return [
            Arrival(float(at), f"t{d}", int(n))
            for at, d, n in zip(ends, domains, lengths, strict=True)
        ]


def one_by_one(merge: Merge, *, engines: int, swap_s: float, steps: int) -> float:
    """Mean seconds of a step where training waits for the scores, and the next rollouts for training."""
    generator = np.random.default_rng(0)
    loaded: list[str | None] = []
    took = []
    for _ in range(steps):
        arrivals = merge.arrivals(generator)
        done = simulate(
            arrivals,
            engines=engines,
            swap_s=swap_s,
            tokens_per_s=merge.tokens_per_s,
            loaded=loaded,
        )
        loaded = done.loaded
        took.append(max(done.ended_s, merge.rollout_s) + merge.train_s)
    return statistics.mean(took)


def overlapped(merge: Merge, *, engines: int, swap_s: float, steps: int) -> float:
    """The same where rollouts go on meanwhile (`algorithm.max_staleness` of 1 or more): a step takes as long
    as the slowest of rollouts, training and scoring."""
    generator = np.random.default_rng(0)
    period_s = max(merge.rollout_s, merge.train_s)
    arrivals = [
        replace(arrival, at_s=arrival.at_s + step * period_s)
        for step in range(steps)
        for arrival in merge.arrivals(generator)
    ]
    done = simulate(arrivals, engines=engines, swap_s=swap_s, tokens_per_s=merge.tokens_per_s)
    return max(done.ended_s / steps, period_s)


def simulated(steps: int = 8) -> list[dict[str, Any]]:
    merge, rows = Merge(), []
    for way in (one_by_one, overlapped):
        resident = way(merge, engines=TEACHERS, swap_s=0.0, steps=steps)
        for swap_s, source in SWAPS.items():
            for engines in (ENGINES, 2 * ENGINES):
                step = way(merge, engines=engines, swap_s=swap_s, steps=steps)
                rows.append(
                    {
                        "way": way.__name__,
                        "engines": engines,
                        "swap_s": swap_s,
                        "source": source,
                        "step_s": round(step, 1),
                        "times_as_long": round(step / resident, 3),
                        "goal": GOAL,
                        "steps_in_two_days": int(2 * 86400 / step),
                        "gpus": merge.student_gpus + engines * merge.gpus_per_engine,
                        "gpus_with_all_resident": merge.student_gpus
                        + TEACHERS * merge.gpus_per_engine,
                        "engine_tokens_per_s": round(merge.tokens_per_s),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def save_plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for way, style in (("one_by_one", "-o"), ("overlapped", "--s")):
        for engines in (ENGINES, 2 * ENGINES):
            chosen = [r for r in rows if (r["way"], r["engines"]) == (way, engines)]
            label = f"{engines} engines, steps {way.replace('_', ' ')}"
            seconds = [r["swap_s"] for r in chosen]
            axes.plot(seconds, [r["times_as_long"] for r in chosen], style, label=label)
    axes.axhline(GOAL, color="grey", linewidth=0.8)
    axes.set_xlabel("seconds of a swap")
    axes.set_ylabel("times as long as all resident")
    axes.set_title("twelve 744B teachers (simulated)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("measured", "simulated"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.what == "measured":
        write_result("teacher_swaps_measured", rows=measured(given.rounds))
    else:
        rows = simulated()
        path = write_result("teacher_swaps_simulated", rows=rows)
        save_plot(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
