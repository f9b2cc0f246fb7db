"""The batched attention of CPU engines against SGLang's own, and against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollout.engine import cpu_imports, padded_attention
from rollout.engine.padded_attention import similar

cpu_imports.install()
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend  # noqa: E402

from rollout.engine.cpu_attention import BatchedTorchAttention  # noqa: E402


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

    def tensors(self) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(self.seed)
        prefix = torch.tensor([p for p, _ in self.lengths])
        new = torch.tensor([n for _, n in self.lengths])
        kv_lens, count = prefix + new, len(self.lengths)
        # Slot 0 and those in between are nobody's.
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
        query = torch.randn(int(new.sum()), self.heads, self.dim, generator=draw)
        return {
            "query": query.to(self.dtype),
            "keys": keys.to(self.dtype),
            "values": values.to(self.dtype),
            "table": table,
            "pool": pool,
            "kv_lens": kv_lens,
            "prefix": prefix,
            "new": new,
        }

    def run(self, backend: type[TorchNativeAttnBackend]) -> Tensor:
        made = object.__new__(backend)  # needs a model runner only for what is not asked here
        t = self.tensors()
        output = torch.empty(len(t["query"]), self.heads, self.value_dim, dtype=self.dtype)
        named = {
            "scaling": 0.3,
            "enable_gqa": self.heads != self.kv_heads,
            "is_cross_attn": False,
            "sliding_window_size": self.window,
        }
        cached = (t["query"], output, t["keys"], t["values"], t["table"], t["pool"], t["kv_lens"])
        if all(new == 1 for _, new in self.lengths):
            return made._run_sdpa_forward_decode(*cached, None, causal=False, **named)  # type: ignore[no-any-return]
        return made._run_sdpa_forward_extend(  # type: ignore[no-any-return]
            *cached, t["prefix"], t["new"], None, causal=True, **named
        )

    def by_hand(self) -> Tensor:
        """In float64, token by token."""
        t = self.tensors()
        rows, at = [], 0
        for n, (prefix, new) in enumerate(self.lengths):
            for step in range(new):
                seen = list(range(prefix + step + 1))
                if self.window is not None:
                    seen = seen[-self.window - 1 :]
                slots = t["table"][t["pool"][n], seen].long()
                share = self.heads // self.kv_heads
                key = t["keys"][slots].double().repeat_interleave(share, 1)
                value = t["values"][slots].double().repeat_interleave(share, 1)
                scores = torch.einsum("hd,khd->hk", t["query"][at].double(), key) * 0.3
                rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), value))
                at += 1
        return torch.stack(rows)


sequences = st.tuples(st.integers(0, 90), st.integers(1, 90))
decoded = st.tuples(st.integers(0, 150), st.just(1))


@given(
    lengths=st.one_of(
        st.lists(sequences, min_size=1, max_size=7), st.lists(decoded, min_size=1, max_size=9)
    ),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    value_dim=st.sampled_from([8, 4]),
    window=st.sampled_from([None, 0, 5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_token_attends_as_by_hand(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    value_dim: int,
    window: int | None,
    seed: int,
) -> None:
    case = Case(lengths, *heads, value_dim=value_dim, window=window, seed=seed)
    torch.testing.assert_close(
        case.run(BatchedTorchAttention).double(), case.by_hand(), atol=2e-6, rtol=2e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lengths",
    [
        [(31, 1)] * 8,
        [(3, 1), (700, 1), (701, 1), (90, 1)],
        [(0, 64)] * 4,
        [(0, 40), (200, 3), (0, 41), (16, 300)],
    ],
    ids=["decode", "ragged_decode", "prefill", "ragged_extend"],
)
def test_it_is_sglangs_own_result(lengths: list[tuple[int, int]], dtype: torch.dtype) -> None:
    case = Case(lengths, 4, 2, dim=16, value_dim=16, dtype=dtype)
    gap = 1e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(
        case.run(BatchedTorchAttention), case.run(TorchNativeAttnBackend), atol=gap, rtol=gap
    )


def test_small_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([(10, 50), (0, 45), (100, 7)], 4, 2)
    whole = case.run(BatchedTorchAttention)
    monkeypatch.setattr(padded_attention, "MASK_ELEMENTS", 300)
    monkeypatch.setattr(padded_attention, "GATHERED_BYTES", 4000)
    torch.testing.assert_close(case.run(BatchedTorchAttention), whole, atol=1e-6, rtol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 5000)), min_size=1, max_size=60))
def test_groups_hold_each_sequence_once_and_waste_little(drawn: list[tuple[int, int]]) -> None:
    q_lens, kv_lens = [q for q, _ in drawn], [q + prefix for q, prefix in drawn]
    groups = list(similar(q_lens, kv_lens, row_bytes=1024))
    assert sorted(n for group in groups for n in group) == list(range(len(drawn)))
    for group in groups:
        for lens in (q_lens, kv_lens):
            low, high = min(lens[n] for n in group), max(lens[n] for n in group)
            assert high - low <= max(padded_attention.NEAR, high // 4)
        rows = len(group) * max(kv_lens[n] for n in group)
        assert len(group) == 1 or rows * 1024 <= padded_attention.GATHERED_BYTES


def test_encoders_are_left_to_sglang() -> None:
    case = Case([(0, 5), (0, 3)], 2, 2)
    t = case.tensors()
    outputs = []
    for backend in (BatchedTorchAttention, TorchNativeAttnBackend):
        output = torch.empty(8, 2, 8)
        object.__new__(backend)._run_sdpa_forward_extend(
            t["query"],
            output,
            t["keys"],
            t["values"],
            t["table"],
            t["pool"],
            t["kv_lens"],
            t["prefix"],
            t["new"],
            None,
            scaling=0.3,
            enable_gqa=False,
            causal=False,
            is_cross_attn=False,
            sliding_window_size=None,
        )
        outputs.append(output)
    assert torch.equal(*outputs)
