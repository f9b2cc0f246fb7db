"""The batched attention of CPU engines, against float64 by hand and SGLang's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollout.engine import padded_attention
from rollout.engine.padded_attention import attend, similar
from tests.rollout.engine.attention_cases import BESIDE_SGLANG, SCALE, Case

sequences = st.tuples(st.integers(0, 90), st.integers(1, 90))
decoded = st.tuples(st.integers(0, 150), st.just(1))


def attended(case: Case) -> Tensor:
    tensors = case.tensors()
    attend(**tensors, scale=SCALE, window=case.window)
    return tensors["output"]


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
    torch.testing.assert_close(attended(case).double(), case.by_hand(), atol=2e-6, rtol=2e-5)


def test_it_is_sglangs_own_result() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tests.rollout.engine.attention_cases"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.count("torch.float32") == 2 * len(BESIDE_SGLANG)


def test_small_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([(10, 50), (0, 45), (100, 7)], 4, 2)
    whole = attended(case)
    monkeypatch.setattr(padded_attention, "MASK_ELEMENTS", 300)
    monkeypatch.setattr(padded_attention, "GATHERED_BYTES", 4000)
    torch.testing.assert_close(attended(case), whole, atol=1e-6, rtol=1e-5)


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
