"""Sparse attention with its indexer against torch's dense attention: time and peak memory by length.

    python -m benchmarks.sparse_attention [--device cpu|cuda] [--tokens 1024 2048 ...]

One causal sequence, forward and backward, every point in a process of its own. Sparse: the indexer's
choice of `top_k` rows (forward only: it has no gradient), then latent attention over them in the absorbed
form. Dense: `scaled_dot_product_attention` on as many expanded heads. On a CPU the sizes are GLM-5.2's
proportions made small (4 heads, 512 chosen rows); on a GPU they are its own (64 heads, 2,048), and
TFLOP/s stand beside what the largest matrix product reaches there.
Writes docs/results/sparse_attention_DEVICE.json and .png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, ROOT, write_result
from benchmarks.sparse_attention_point import SIZES, Point, now
from trainer.ranks.cpu_memory import KEEP_FREED_MEMORY

TOKENS = {
    "cpu": [1024, 2048, 4096, 8192, 16384, 32768, 65536],
    "cuda": [8192, 16384, 32768, 65536, 131072],
}
SIDES = ("sparse", "dense")


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse against dense attention.")
    parser.add_argument("--device", choices=list(TOKENS), default=default_device())
    parser.add_argument("--tokens", type=int, nargs="*")
    options = parser.parse_args()
    device = options.device
    ceiling = matmul_ceiling(device)
    points = []
    for tokens in options.tokens or TOKENS[device]:
        for side in SIDES:
            points.append(run_point(side, tokens, device))
            print(shown(points[-1]), flush=True)
    rows = [row_of(point, device, ceiling) for point in points]
    print_growth(points)
    name = f"sparse_attention_{device}"
    print(write_result(name, rows=rows, note=note(device, ceiling)))
    plot(points, RESULTS / f"{name}.png")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_point(side: str, tokens: int, device: str) -> Point:
    """In a process with the environment of a trainer's rank."""
    command = [sys.executable, "-m", "benchmarks.sparse_attention_point", side, str(tokens), device]
    environment = {**os.environ, **KEEP_FREED_MEMORY, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def matmul_ceiling(device: str) -> float:
    """FLOP/s of a large square product in the dtype of the sizes, the best of five."""
    torch.set_num_threads(1)
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, dtype=SIZES[device].dtype, device=device)
    seconds = []
    for _ in range(6):
        began = now(device)
        a @ a
        seconds.append(now(device) - began)
    return float(2 * size**3 / min(seconds[1:]))


def row_of(point: Point, device: str, ceiling: float) -> dict[str, Any]:
    flops = SIZES[device].flops(point.tokens)
    parts = {
        "forward": (flops[f"{point.side}_forward"], point.forward_s),
        "backward": (flops[f"{point.side}_backward"], point.backward_s),
    }
    if point.side == "sparse":
        parts["select"] = (flops["select"], point.select_s)
    row: dict[str, Any] = {"side": point.side, "tokens": point.tokens}
    for name, (work, seconds) in parts.items():
        row[f"{name}_s"] = round(seconds, 4)
        row[f"{name}_tflops"] = round(work / seconds / 1e12, 4)
        row[f"{name}_share_of_matmul"] = round(work / seconds / ceiling, 3)
    row["total_s"] = round(point.select_s + point.forward_s + point.backward_s, 4)
    row["peak_mib"] = round(point.peak_bytes / 2**20, 1)
    row["peak_bytes_per_token"] = round(point.peak_bytes / point.tokens)
    return row


def note(device: str, ceiling: float) -> str:
    sizes = SIZES[device]
    return (
        f"{sizes.heads} heads, rows {sizes.latent} + {sizes.rope}, expanded heads of {sizes.head}, "
        f"{sizes.index_heads} index heads of {sizes.index_dim}, top_k {sizes.top_k}, {sizes.dtype}, one "
        f"thread, {'CPU ' if device == 'cpu' else ''}seconds; matrix product {ceiling / 1e12:.3f} TFLOP/s. Peak memory is above the inputs: ids, "
        "output, gradients, scratch."
    )


def shown(point: Point) -> str:
    return (
        f"{point.tokens:8,} tokens  {point.side:<6}  select {point.select_s:8.3f} s  "
        f"forward {point.forward_s:8.3f} s  backward {point.backward_s:8.3f} s  "
        f"peak {point.peak_bytes / 2**20:9.1f} MiB   load {os.getloadavg()[0]:.1f}"
    )


def print_growth(points: Sequence[Point]) -> None:
    """From one length to the next: linear memory grows as the tokens do, [T, T] as their square."""
    for side in SIDES:
        mine = [p for p in points if p.side == side]
        for short, long in itertools.pairwise(mine):
            print(
                f"{side:<6} x{long.tokens / short.tokens:.1f} tokens ({long.tokens:,}): "
                f"memory x{long.peak_bytes / short.peak_bytes:.2f}"
            )


def plot(points: Sequence[Point], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    series: Mapping[str, Any] = {
        "sparse: choice + attention": ("sparse", lambda p: p.select_s + p.forward_s + p.backward_s),
        "sparse: attention alone": ("sparse", lambda p: p.forward_s + p.backward_s),
        "dense (torch SDPA)": ("dense", lambda p: p.forward_s + p.backward_s),
    }
    colours = dict(zip(series, ("#3b6fb6", "#8aa9d6", "#d1495b"), strict=True))
    for label, (side, value) in series.items():
        mine = [p for p in points if p.side == side]
        time_axes.plot(
            [p.tokens for p in mine],
            [value(p) for p in mine],
            marker="o",
            label=label,
            color=colours[label],
        )
    for side, colour in (("sparse", "#3b6fb6"), ("dense", "#d1495b")):
        mine = [p for p in points if p.side == side]
        memory_axes.plot(
            [p.tokens for p in mine],
            [p.peak_bytes / 2**20 for p in mine],
            marker="o",
            label=side,
            color=colour,
        )
    time_axes.set_ylabel("seconds, forward and backward")
    memory_axes.set_ylabel("peak memory above the inputs, MiB")
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
