"""Passes: every asked-for token once, read where its prediction stands, and never more slots than tokens."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.types import TrainRow
from tests.trainer.train_rows import plan_of, train_rows
from trainer.deepspeed.passes import idle_pass, passes_of
from trainer.ranks.shard import RowShard, asked_tokens, cut

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=12)


def shard_of(lengths: list[int], batches: int) -> tuple[list[TrainRow], RowShard]:
    rows = train_rows(tuple(lengths))
    micro_batches = [tuple(range(b, len(rows), batches)) for b in range(batches)]
    (shard,) = cut(rows, plan_of(tuple(micro_batches)), ("loss_mask", "advantages"))
    return rows, shard


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 3), st.booleans())
def test_each_asked_token_is_read_once_where_its_prediction_stands(
    lengths: list[int], batches: int, packed: bool
) -> None:
    _, shard = shard_of(lengths, batches)
    tokens, advantages = shard.columns["token_ids"], shard.columns["advantages"]
    passes = passes_of(shard, packed=packed, device=CPU)
    asked = np.concatenate([each.asked for each in passes]) if passes else np.zeros(0)
    np.testing.assert_array_equal(np.sort(asked), asked_tokens(shard))
    for each in passes:
        flat = each.input_ids.reshape(-1)
        np.testing.assert_array_equal(each.targets, tokens[each.asked])
        np.testing.assert_array_equal(each.fields["advantages"], advantages[each.asked])
        np.testing.assert_array_equal(flat[each.positions], tokens[each.asked - 1])
        assert each.mask.all()


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.booleans())
def test_a_pass_has_each_row_from_its_beginning_and_no_more_slots_than_tokens(
    lengths: list[int], packed: bool
) -> None:
    rows, shard = shard_of(lengths, 1)
    seen = []
    for each in passes_of(shard, packed=packed, device=CPU):
        assert each.input_ids.numel() <= sum(lengths)
        assert (each.position_ids is not None) == packed
        ids = each.input_ids
        if packed:
            assert each.position_ids is not None
            starts = torch.nonzero(each.position_ids[0] == 0).flatten().tolist()
            pieces = torch.tensor_split(ids[0], starts[1:])
        else:
            pieces = ids.unbind()
        for piece in pieces:
            fits = [
                r
                for r, row in enumerate(rows)
                if r not in seen and _begins_with(row.token_ids, piece.numpy(), row.loss_mask)
            ]
            seen.append(fits[0])
    assert sorted(seen) == [r for r, row in enumerate(rows) if row.loss_mask.any()]


def _begins_with(row: np.ndarray, piece: np.ndarray, mask: np.ndarray) -> bool:
    """The piece is the row up to its last asked-for token, and padding after that."""
    needed = int(np.flatnonzero(mask).max(initial=0))
    return (
        needed > 0
        and len(piece) >= needed
        and bool((piece[:needed] == row[:needed]).all())
        and not piece[needed:].any()
    )


def test_values_are_asked_of_every_token_but_the_first() -> None:
    rows = train_rows((4, 1, 9))
    (shard,) = cut(rows, plan_of(((2, 0), (1,), ())), ())
    passes = passes_of(shard, packed=False, device=CPU)
    assert sorted(np.concatenate([each.asked for each in passes]).tolist()) == [
        *range(1, 9),
        *range(10, 13),
    ]


def test_a_rank_without_rows_makes_idle_passes() -> None:
    (shard,) = cut([], plan_of(((),)), ("loss_mask", "advantages"))
    assert passes_of(shard, packed=False, device=CPU) == []
    idle = idle_pass(shard, CPU)
    assert idle.input_ids.shape == (1, 1)
    assert idle.mask.tolist() == [False]
    assert idle.fields.keys() == {"advantages"}
