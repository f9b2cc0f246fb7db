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
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Round, interleaved, ratio, row, write_result
from rollout.engine import cpu_imports

cpu_imports.install()
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402

from rollout.engine.cpu_attention import BatchedTorchAttention  # noqa: E402

HEADS, KV_HEADS = 4, 2
REPEATS_S = 0.2
"""A round repeats the call for about so long."""


class Case(NamedTuple):
    lengths: list[tuple[int, int]]
    """Of each sequence: cached tokens, new ones."""
    head_dim: int = 16


CASES = {
    "decode, 1 sequence of 64": Case([(63, 1)]),
    "decode, 8 of 1,000 to 1,300": Case([(1000 + 40 * n, 1) for n in range(8)], 64),
    "decode, 64 of 64": Case([(63, 1)] * 64),
    "decode, 64 of 20 to 210": Case([(20 + 3 * n, 1) for n in range(64)]),
    "prompts, 64 of 32": Case([(0, 32)] * 64),
    "prompts, 32 of 20 to 82": Case([(0, 20 + 2 * n) for n in range(32)]),
    "turns, 8 of 40 after 700 to 910": Case([(700 + 30 * n, 40) for n in range(8)]),
    "scoring, 32 of 256": Case([(0, 256)] * 32),
    "prompt, 1 of 4,096": Case([(0, 4096)], 64),
}


def caller(backend: type[TorchNativeAttnBackend], case: Case) -> Callable[[], torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    prefix, new = (torch.tensor(side) for side in zip(*case.lengths, strict=True))
    kv_lens, count = prefix + new, len(case.lengths)
    table = torch.zeros(count, int(kv_lens.max()), dtype=torch.int32)
    slots = torch.randperm(int(kv_lens.sum()), generator=draw).int()
    for n, own in enumerate(slots.split(kv_lens.tolist())):
        table[n, : len(own)] = own
    keys, values = (
        torch.randn(len(slots), KV_HEADS, case.head_dim, generator=draw) for _ in range(2)
    )
    query = torch.randn(int(new.sum()), HEADS, case.head_dim, generator=draw)
    cached = (query, torch.empty_like(query), keys, values, table, torch.arange(count), kv_lens)
    named: dict[str, Any] = {
        "scaling": case.head_dim**-0.5,
        "enable_gqa": True,
        "is_cross_attn": False,
        "sliding_window_size": None,
    }
    made = object.__new__(backend)  # the two methods ask nothing of a model runner
    if int(new.max()) == 1:
        return lambda: made._run_sdpa_forward_decode(*cached, None, causal=False, **named)
    return lambda: made._run_sdpa_forward_extend(*cached, prefix, new, None, causal=True, **named)


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
    for name, case in CASES.items():
        print(name)
        calls = {
            "rlframe": caller(BatchedTorchAttention, case),
            "sglang": caller(TorchNativeAttnBackend, case),
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
