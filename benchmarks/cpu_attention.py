"""Attention of a CPU engine: ours, a call for a batch, against SGLang's own, a call a sequence.

    python benchmarks/cpu_attention.py [--rounds 9]

One layer's attention over a paged cache, float32, one thread, as the backend's two methods are called by SGLang:
decode steps, prompts, turns after a cached prefix, traces to score.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Round, interleaved, ratio, row, write_result
from rollout.engine import cpu_imports
from tests.rollout.engine.attention_cases import Case, caller

cpu_imports.install()
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402

from rollout.engine.cpu_attention import BatchedTorchAttention  # noqa: E402

REPEATS_S = 0.2
"""A round repeats the call for about so long."""


def case(lengths: list[tuple[int, int]], dim: int = 16) -> Case:
    return Case(lengths, heads=4, kv_heads=2, dim=dim, value_dim=dim)


CASES = {
    "decode, 1 sequence of 64": case([(63, 1)]),
    "decode, 8 of 1,000 to 1,300": case([(1000 + 40 * n, 1) for n in range(8)], 64),
    "decode, 64 of 64": case([(63, 1)] * 64),
    "decode, 64 of 20 to 210": case([(20 + 3 * n, 1) for n in range(64)]),
    "prompts, 64 of 32": case([(0, 32)] * 64),
    "prompts, 32 of 20 to 82": case([(0, 20 + 2 * n) for n in range(32)]),
    "turns, 8 of 40 after 700 to 910": case([(700 + 30 * n, 40) for n in range(8)]),
    "scoring, 32 of 256": case([(0, 256)] * 32),
    "prompt, 1 of 4,096": case([(0, 4096)], 64),
}


def side(call: Callable[[], torch.Tensor]) -> Callable[[], Round]:
    began = time.perf_counter()
    call()
    repeats = max(1, int(REPEATS_S / (time.perf_counter() - began)))

    def once() -> Round:
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            call()
        return Round(time.perf_counter() - began, time.process_time() - cpu, repeats)

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, measured in CASES.items():
        print(name)
        calls = {
            "rlframe": caller(BatchedTorchAttention, measured),
            "sglang": caller(TorchNativeAttnBackend, measured),
        }
        first, second = (call().clone() for call in calls.values())
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
        found = interleaved({n: side(call) for n, call in calls.items()}, rounds=given.rounds)
        times = ratio(found["rlframe"], found["sglang"])
        ours, theirs = (row(n, found[n])["rate"] for n in ("rlframe", "sglang"))
        rows.append(
            {
                "case": name,
                "times_as_fast": round(times, 2),
                "ms": round(1e3 / ours, 2),
                "sglang_ms": round(1e3 / theirs, 2),
            }
        )
        print(f"  {times:.2f} times as fast")
    write_result("cpu_attention", rows)


if __name__ == "__main__":
    main()
