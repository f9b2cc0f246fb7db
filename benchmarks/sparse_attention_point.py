"""One side of `benchmarks/sparse_attention.py` at one length, in a process of its own; one JSON line out.

python -m benchmarks.sparse_attention_point sparse 4096 cpu
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from trainer.models.glm.key_selection import select_keys
from trainer.models.glm.sparse_attention import sparse_attention


@dataclass(frozen=True)
class Sizes:
    """Of the core of attention alone: the projections around it are the same for both sides."""

    heads: int
    latent: int
    rope: int
    head: int  # of queries, keys and values in the expanded form
    index_heads: int
    index_dim: int
    top_k: int
    dtype: torch.dtype

    def flops(self, tokens: int) -> dict[str, float]:
        """Of one forward pass over one causal sequence, and of the backward pass of its attention."""
        pairs = tokens * (tokens + 1) / 2
        short = min(tokens, self.top_k)
        chosen = short * (short + 1) / 2 + (tokens - short) * self.top_k
        row = self.latent + self.rope
        return {
            "select": 2 * self.index_heads * (self.index_dim + 1) * pairs,
            "sparse_forward": 2 * self.heads * (row + self.latent) * chosen,
            "sparse_backward": 2 * self.heads * (3 * row + 2 * self.latent) * chosen,
            "dense_forward": 2 * self.heads * 2 * self.head * pairs,
            "dense_backward": 2 * self.heads * 5 * self.head * pairs,
        }


SIZES = {
    # GLM-5.2's proportions at a size that one core can do 64K tokens of.
    "cpu": Sizes(4, 128, 16, 64, 4, 32, 512, torch.float32),
    # GLM-5.2's own head shapes, all 64 heads on one GPU.
    "cuda": Sizes(64, 512, 64, 256, 32, 128, 2048, torch.bfloat16),
}


@dataclass(frozen=True)
class Point:
    side: str
    tokens: int
    select_s: float
    forward_s: float
    backward_s: float
    peak_bytes: int
    """Above what was there with the inputs: ids, outputs, what is saved, gradients, scratch."""


def sparse_side(sizes: Sizes, tokens: int, device: str) -> Callable[[], tuple[float, float, float]]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=sizes.dtype, device=device)

    index = (
        random(tokens, sizes.index_heads, sizes.index_dim),
        random(tokens, sizes.index_heads),
        random(tokens, sizes.index_dim),
    )
    queries = random(tokens, sizes.heads, sizes.latent + sizes.rope).requires_grad_()
    rows = random(tokens, sizes.latent + sizes.rope).requires_grad_()
    last = torch.arange(tokens, device=device)
    first = torch.zeros_like(last)

    def once() -> tuple[float, float, float]:
        began = now(device)
        ids = select_keys(*index, first_rows=first, last_rows=last, top_k=sizes.top_k)
        chosen = now(device)
        out = sparse_attention(queries, rows, ids, scale=sizes.head**-0.5, value_dim=sizes.latent)
        forward = now(device)
        torch.autograd.grad(out, (queries, rows), torch.ones_like(out))
        return chosen - began, forward - chosen, now(device) - forward

    return once


def dense_side(sizes: Sizes, tokens: int, device: str) -> Callable[[], tuple[float, float, float]]:
    """torch's own attention, flash where it has it, on as many expanded heads."""
    shape = (1, sizes.heads, tokens, sizes.head)
    qkv = [torch.randn(shape, dtype=sizes.dtype, device=device).requires_grad_() for _ in range(3)]

    def once() -> tuple[float, float, float]:
        began = now(device)
        out = F.scaled_dot_product_attention(*qkv, is_causal=True)
        forward = now(device)
        torch.autograd.grad(out, qkv, torch.ones_like(out))
        return 0.0, forward - began, now(device) - forward

    return once


def now(device: str) -> float:
    """Seconds of the clock on a GPU; of the processor, which others may use too, on a CPU (one thread)."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(side: str, tokens: int, device: str) -> Point:
    """Peak memory of the first round at full length, times of the median round."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make = {"sparse": sparse_side, "dense": dense_side}[side]
    make(SIZES[device], 600, device)()  # libraries load
    once = make(SIZES[device], tokens, device)
    before = reset_peak(device)
    rounds = [once()]
    peak = peak_bytes(device) - before
    rounds += [once() for _ in range(0 if tokens > 16384 and device == "cpu" else 2)]
    seconds = [statistics.median(part) for part in zip(*rounds, strict=True)]
    return Point(side, tokens, *seconds, peak_bytes=peak)


def reset_peak(device: str) -> int:
    """What is in use now; peaks count from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: sets VmHWM to VmRSS
    return status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    """A line of /proc/self/status, which are in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3]))), flush=True)
