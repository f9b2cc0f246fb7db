"""Batches for the attention of CPU engines, for tests and its benchmark; as a program, SGLang's own result beside ours.

A process of its own, because SGLang's backend can't be imported after transformers was without the stand-ins
of `rollout.engine.cpu_imports`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCALE = 0.3


@dataclass(frozen=True)
class Case:
    """Sequences as (cached prefix, new tokens)."""

    lengths: list[tuple[int, int]]
    heads: int
    kv_heads: int
    dim: int = 8
    value_dim: int = 8
    window: int | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Arguments of `padded_attention.attend`, by name; what is nobody's in the pool is NaN."""
        draw = torch.Generator().manual_seed(self.seed)
        new = torch.tensor([n for _, n in self.lengths])
        kv_lens = torch.tensor([prefix + n for prefix, n in self.lengths])
        count = len(self.lengths)
        slots = torch.randperm(2 * int(kv_lens.sum()), generator=draw) + 1
        table = torch.zeros(count + 3, int(kv_lens.max()) + 5, dtype=torch.int32)
        pool = torch.randperm(count + 3, generator=draw)[:count]
        keys = torch.full((slots.numel() + 1, self.kv_heads, self.dim), float("nan"))
        values = torch.full((slots.numel() + 1, self.kv_heads, self.value_dim), float("nan"))
        used = 0
        for row, length in zip(pool.tolist(), kv_lens.tolist(), strict=True):
            own = slots[used : used + length]
            used += length
            table[row, :length] = own.int()
            keys[own] = torch.randn(length, self.kv_heads, self.dim, generator=draw)
            values[own] = torch.randn(length, self.kv_heads, self.value_dim, generator=draw)
        tokens = int(new.sum())
        return {
            "query": torch.randn(tokens, self.heads, self.dim, generator=draw).to(self.dtype),
            "output": torch.empty(tokens, self.heads, self.value_dim, dtype=self.dtype),
            "keys": keys.to(self.dtype),
            "values": values.to(self.dtype),
            "req_to_token": table,
            "pool": pool,
            "kv_lens": kv_lens,
            "q_lens": new,
        }

    def by_hand(self) -> Tensor:
        """In float64, token by token."""
        t = self.tensors()
        share = self.heads // self.kv_heads
        rows: list[Tensor] = []
        for n, (prefix, new) in enumerate(self.lengths):
            for step in range(new):
                seen = list(range(prefix + step + 1))
                if self.window is not None:
                    seen = seen[-self.window - 1 :]
                slots = t["req_to_token"][t["pool"][n], seen].long()
                key = t["keys"][slots].double().repeat_interleave(share, 1)
                value = t["values"][slots].double().repeat_interleave(share, 1)
                query = t["query"][len(rows)].double()
                scores = torch.einsum("hd,khd->hk", query, key) * SCALE
                rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), value))
        return torch.stack(rows)


BESIDE_SGLANG = {
    "decode": [(31, 1)] * 8,
    "ragged decode": [(3, 1), (700, 1), (701, 1), (90, 1)],
    "few": [(5, 1), (9, 1)],
    "prompts": [(0, 64)] * 4,
    "ragged turns": [(0, 40), (200, 3), (0, 41), (16, 300)],
}


def caller(backend: type[Any], case: Case, *, causal: bool = True) -> Callable[[], Tensor]:
    """The case through one of the two methods that SGLang's backend has for it, as SGLang calls them."""
    made = object.__new__(backend)  # they ask nothing of a model runner
    t = case.tensors()
    names = ("query", "output", "keys", "values", "req_to_token", "pool", "kv_lens")
    cached = [t[name] for name in names]
    named = {
        "scaling": SCALE,
        "enable_gqa": case.heads != case.kv_heads,
        "is_cross_attn": False,
        "sliding_window_size": case.window,
    }
    if all(new == 1 for _, new in case.lengths):
        return lambda: made._run_sdpa_forward_decode(*cached, None, causal=False, **named)
    more = [t["kv_lens"] - t["q_lens"], t["q_lens"], None]
    return lambda: made._run_sdpa_forward_extend(*cached, *more, causal=causal, **named)


def main() -> None:
    from rollout.engine import cpu_imports

    cpu_imports.install()
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from rollout.engine.cpu_attention import BatchedTorchAttention

    for dtype, gap in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        for name, lengths in BESIDE_SGLANG.items():
            for window in (None, 20):
                case = Case(lengths, 4, 2, 16, 16, window, dtype)
                ours = caller(BatchedTorchAttention, case)()
                theirs = caller(TorchNativeAttnBackend, case)()
                torch.testing.assert_close(ours, theirs, atol=gap, rtol=gap)
                print(f"{name} {window} {dtype}: {float((ours - theirs).abs().max()):.1e}")
    encoder = Case([(0, 5), (0, 3)], 2, 2)
    both = [
        caller(b, encoder, causal=False)() for b in (BatchedTorchAttention, TorchNativeAttnBackend)
    ]
    assert torch.equal(*both)


if __name__ == "__main__":
    main()
