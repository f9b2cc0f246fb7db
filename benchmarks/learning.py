"""The smoke job on three seeds: held-out reward before and after, time, memory, largest logprob gap.

python benchmarks/learning.py                                    # `make smoke` three times, from one warm start
python benchmarks/learning.py --trainer deepspeed --seeds 0      # the other backend, and its warm start
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import RESULTS, ROOT, write_result
from rlframe.metrics import HELD_OUT, read, series

RLFRAME = str(Path(sys.executable).parent / "rlframe")
RUNS = ROOT / "runs" / "learning"
POLL_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", choices=("megatron", "deepspeed"), default="megatron")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--warm-start", default="", help="a model of sft_tiny that is there")
    parser.add_argument("overrides", nargs="*", help="keys of both runs, such as steps=60")
    given = parser.parse_args()
    name = "learning" if given.trainer == "megatron" else f"learning_{given.trainer}"
    shutil.rmtree(RUNS, ignore_errors=True)
    trainer = [f"trainer={given.trainer}", *given.overrides]
    start, note = given.warm_start, "from a warm start that was there"
    if not start:
        warm = run(["experiment=sft_tiny", *trainer, f"run_dir={RUNS / 'sft'}"])
        print(f"warm start: {warm['seconds']:.0f} s", flush=True)
        start, note = (
            str(RUNS / "sft" / "hf"),
            f"warm start of {warm['seconds']:.0f} s not included",
        )
    rows = [learn(seed, trainer, start) for seed in given.seeds]
    write_result(name, rows, note=note)
    plot(RESULTS / f"{name}.png", given.seeds)
    return 0 if all(r["start"] < 0.35 and r["end"] > 0.85 for r in rows) else 1


def learn(seed: int, trainer: Sequence[str], start: str) -> dict[str, float]:
    directory = RUNS / f"seed_{seed}"
    done = run(
        [
            "experiment=smoke",
            *trainer,
            f"seed={seed}",
            f"run_dir={directory}",
            f"model.path={start}",
        ]
    )
    history = read(directory / "metrics.jsonl")
    rewards = series(history, "held_out/mean", event=HELD_OUT)
    gaps = series(history, "gap/mean")
    row = {
        "seed": seed,
        "start": round(rewards[0][1], 3),
        "end": round(rewards[-1][1], 3),
        "seconds": round(done["seconds"], 1),
        "peak_memory_gib": round(done["peak_memory_gib"], 2),
        "largest_mean_logprob_gap": max(value for _, value in gaps),
        "median_step_seconds": round(
            sorted(v for _, v in series(history, "time/total_s"))[len(gaps) // 2], 2
        ),
    }
    print(json.dumps(row), flush=True)
    return row


def run(overrides: list[str]) -> dict[str, float]:
    """Seconds of one `rlframe train`, and the most memory that its processes had together (PSS)."""
    began, peak = time.monotonic(), 0.0
    command = [RLFRAME, "train", *overrides, "logging.live=off", "logging.wandb=off"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_gib(process.pid))
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds": time.monotonic() - began, "peak_memory_gib": peak}


def memory_gib(pid: int) -> float:
    """Proportional set size of a process tree: shared pages count once."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in tree:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024**2


def plot(path: Path, seeds: Sequence[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for seed in seeds:
        history = read(RUNS / f"seed_{seed}" / "metrics.jsonl")
        points = series(history, "held_out/mean", event=HELD_OUT)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"seed {seed}")
    axes.axhline(0.85, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="held-out mean reward", ylim=(0, 1.02))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    sys.exit(main())
