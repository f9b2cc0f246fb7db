"""Ids: kept per micro-batch until their last use, sent bit for bit, replayed from outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import rows
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.training_ranks import join_ranks
from trainer.models.context import ContextRank
from trainer.models.glm.travelling_ids import with_ids, without_ids
from trainer.models.shared_ids import SharedIds

IDS = torch.tensor([[0, -1]], dtype=torch.int32)


def test_ids_go_after_the_last_reader() -> None:
    shared = SharedIds({2: frozenset({2, 3, 4})})
    shared.put(2, IDS)
    for layer in (2, 3):
        shared.used(2, layer, comes_again=False)
        assert shared.get(2) is IDS
    shared.used(2, 4, comes_again=False)
    assert shared.get(2) is None


def test_ids_stay_until_all_replays_have_come() -> None:
    shared = SharedIds({2: frozenset({2, 3, 4}), 5: frozenset({5})})
    shared.put(2, IDS)
    shared.used(2, 2, comes_again=True)
    shared.used(2, 3, comes_again=True)
    shared.used(2, 4, comes_again=False)  # not recomputed
    shared.put(5, IDS)
    shared.used(5, 5, comes_again=True)
    assert len(shared) == 2
    shared.used(5, 5, comes_again=False)
    assert len(shared) == 1
    shared.used(2, 3, comes_again=False)
    assert shared.get(2) is IDS
    shared.used(2, 2, comes_again=False)
    assert len(shared) == 0


@given(
    bits=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_ids_travel_bit_for_bit(bits: list[int], dtype: torch.dtype) -> None:
    """Among them patterns that are NaN as numbers of the message's dtype."""
    ids = torch.tensor(bits, dtype=torch.int32).view(2, 3)
    hidden = torch.randn(2, 1, 5).to(dtype).requires_grad_()
    message = with_ids(hidden, ids)
    states, arrived = without_ids(message, 5, 3)
    assert torch.equal(arrived, ids)
    assert torch.equal(states, hidden)
    states.float().sum().backward()
    assert torch.equal(hidden.grad, torch.ones_like(hidden))


@given(size=st.integers(1, 5), pieces=st.integers(1, 7))
def test_context_ranks_share_the_row(size: int, pieces: int) -> None:
    ranks = [ContextRank(rank, size) for rank in range(size)]
    total = pieces * ranks[0].parts
    own = [rank.rows(total) for rank in ranks]
    assert sorted(token for rows in own for token in rows) == list(range(total))
    gathered = torch.cat([torch.from_numpy(rows) for rows in own])
    assert gathered[torch.from_numpy(ranks[0].order(total))].tolist() == list(range(total))
    # A token at p attends to p + 1 rows: every rank has as many pairs.
    assert len({int((rows + 1).sum()) for rows in own}) == 1


def replay(rank: int, world_size: int, init_method: str, context: int) -> list[torch.Tensor]:
    """Logits with the model's own ids, with the same ids given, and with others given."""
    from megatron.core import parallel_state

    from trainer.models.build import build_model
    from trainer.models.packed import PackedBatch, forward

    layout = LayoutConfig(context=context)
    join_ranks(rank, world_size, init_method, layout)
    model = build_model(
        hf_config=TINY_GLM,
        layout=layout,
        transformer={},
        role="policy",
        dtype="float32",
        device="cpu",
        seed=3,
    )
    place = ContextRank(parallel_state.get_context_parallel_rank(), context)

    def logits(given: dict[int, torch.Tensor]) -> torch.Tensor:
        packed = PackedBatch.from_rows(rows((40, 23)), context=place)
        packed.given_ids = given
        with torch.no_grad():
            return forward(model, packed)[packed.rows < 63]

    chosen: dict[int, torch.Tensor] = {}
    for layer in model.decoder.layers:
        layer.self_attention.observer = _keep(chosen)
    own = logits({})
    if context == 1:
        _same_by_rows(chosen)
    sources = {layer: chosen[layer] for layer in (0, 1, 2, 6)}
    assert all(torch.equal(chosen[layer], chosen[2]) for layer in (3, 4, 5))
    own_again = logits(sources)
    others = {layer: ids.clone() for layer, ids in sources.items()}
    others[2][:, :3] = -1
    return [own, own_again, logits(others)]


def _same_by_rows(chosen: dict[int, torch.Tensor]) -> None:
    """What an engine would give, by sequence, becomes what the layers had chosen."""
    from trainer.models.packed import PackedBatch

    packed = PackedBatch.from_rows(rows((40, 23)))
    pieces = [chosen[2][:40].numpy(), chosen[2][40:].numpy()]
    pieces[1] = np.where(pieces[1] < 0, -1, pieces[1] - 40)
    packed.give_ids({2: pieces})
    assert torch.equal(packed.given_ids[2], chosen[2])


def _keep(chosen: dict[int, torch.Tensor]) -> Any:
    def observe(module: Any, record: Any, packed: Any, output: torch.Tensor) -> torch.Tensor:
        chosen[record.layer] = record.ids.clone()
        return output

    return observe


@pytest.mark.parametrize("context", [1, 2])
def test_given_ids_are_used_instead(context: int) -> None:
    for own, again, others in run_ranks(replay, context, context=context):
        assert torch.equal(own, again)
        assert (own - others).abs().max() > 1e-3
