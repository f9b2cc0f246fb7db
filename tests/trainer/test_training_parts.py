"""The small parts of a rank: shards, micro-batches, learning rate, options, bfloat16."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from rlframe.types import BatchPlan
from tests.trainer.forests import random_forest, random_plan
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import plan_of, rank_spec, train_rows
from trainer.megatron.options import from_options
from trainer.ranks.learning_rate import learning_rate
from trainer.ranks.network import interface_of
from trainer.ranks.shard import cut, join


@st.composite
def rows_and_plans(draw: Any) -> tuple[tuple[int, ...], BatchPlan]:
    lengths = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=9)))
    ranks, batches = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    places = [draw(st.integers(0, ranks * batches - 1)) for _ in lengths]
    order = draw(st.permutations(range(len(lengths))))
    boxes = [tuple(i for i in order if places[i] == box) for box in range(ranks * batches)]
    plan = plan_of(*(tuple(boxes[r * batches : (r + 1) * batches]) for r in range(ranks)))
    return lengths, plan


@settings(deadline=None)
@given(rows_and_plans())
def test_join_undoes_cut(case: tuple[tuple[int, ...], BatchPlan]) -> None:
    lengths, plan = case
    rows = train_rows(lengths)
    shards = cut(rows, plan, ("advantages",))
    joined = join([shard.columns["advantages"].astype(np.float32) for shard in shards], rows, plan)
    for row, column in zip(rows, joined, strict=True):
        np.testing.assert_array_equal(column, row.advantages)

    for shard, micro_batches in zip(shards, plan.micro_batches, strict=True):
        pieces = list(shard.micro_batches())
        assert len(pieces) == len(micro_batches)
        for piece, members in zip(pieces, micro_batches, strict=True):
            tokens = piece.token_rows()
            assert len(tokens) == len(members)
            for ids, member in zip(tokens, members, strict=True):
                np.testing.assert_array_equal(ids, rows[member].token_ids)


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(((0, 1),)),  # row 2 is missing
        plan_of(((0, 1, 2, 2),)),  # twice
        plan_of(((0, 1),), ((2,), ())),  # ranks differ
        plan_of((), ()),
    ],
)
def test_a_plan_that_does_not_cover_the_rows_is_refused(plan: BatchPlan) -> None:
    with pytest.raises(ValueError, match=r"must be named exactly once|same micro-batches"):
        cut(train_rows((3, 4, 5)), plan, ())


def test_micro_batches_ask_for_the_tokens_that_train() -> None:
    from trainer.megatron.micro_batch import micro_batches

    rows = train_rows((4, 1, 9))
    plan = plan_of(((2, 0), (1,), ()))
    (shard,) = cut(rows, plan, ("loss_mask", "advantages"))
    first, untrained, empty = micro_batches(shard, multiple_of=4, device=torch.device("cpu"))

    mask = np.concatenate([rows[2].loss_mask, rows[0].loss_mask])
    np.testing.assert_array_equal(first.asked, np.flatnonzero(mask))
    tokens = np.concatenate([rows[2].token_ids, rows[0].token_ids])
    assert first.targets.tolist() == tokens[mask].tolist()
    advantages = np.concatenate([rows[2].advantages, rows[0].advantages])
    assert first.fields["advantages"].tolist() == advantages[mask].tolist()
    positions = first.packed.output_positions
    assert positions is not None
    assert positions.tolist() == (first.asked - 1).tolist()
    assert len(first.packed.token_ids) == 16
    for batch in (untrained, empty):
        assert len(batch.asked) == 0
        assert batch.mask.tolist() == [False]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2]))
def test_shared_prefixes_ask_for_the_same_tokens(seed: int, size: int) -> None:
    """Each in its own row, with its own credit, read where the token before it is laid out."""
    from trainer.megatron.micro_batch import micro_batches
    from trainer.models.context import ContextRank

    rows = random_forest(seed)
    (shard,) = cut(rows, random_plan(seed, len(rows), data=1), ("loss_mask", "advantages"))
    settings_ = {"multiple_of": 2, "device": torch.device("cpu")}
    plain = micro_batches(shard, **settings_)  # type: ignore[arg-type]
    ranks = [
        micro_batches(
            shard,
            context=ContextRank(rank, size),
            share_prefixes=True,
            **settings_,  # type: ignore[arg-type]
        )
        for rank in range(size)
    ]
    for apart, *shared in zip(plain, *ranks, strict=True):
        asked = np.concatenate([batch.asked for batch in shared])
        order = np.argsort(asked)
        np.testing.assert_array_equal(asked[order], apart.asked)
        for batch in shared:
            assert batch.tokens == apart.tokens
            if not len(batch.asked):
                assert batch.mask.tolist() == [False]
                continue
            mine = np.searchsorted(apart.asked, batch.asked)
            assert torch.equal(batch.targets, apart.targets[mine])
            assert torch.equal(batch.traces, apart.traces[mine])
            assert torch.equal(batch.fields["advantages"], apart.fields["advantages"][mine])
            read, read_apart = batch.packed.output_positions, apart.packed.output_positions
            assert read is not None
            assert read_apart is not None
            before, own = apart.packed.token_ids[read_apart[mine]], batch.packed.token_ids[read]
            assert torch.equal(own, before)
            assert torch.equal(
                batch.packed.positions[read], apart.packed.positions[read_apart[mine]]
            )


SCHEDULE = {"peak": 1.0, "floor": 0.1, "total_steps": 10}


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]),
    ],
)
def test_learning_rate(decay: str, expected: list[float]) -> None:
    steps = (0, 1, 2, 6, 10, 11)
    rates = [learning_rate(s, warmup_steps=2, decay=decay, **SCHEDULE) for s in steps]  # type: ignore[arg-type]
    assert rates == pytest.approx(expected)


@given(st.integers(0, 40), st.integers(0, 50), st.integers(1, 40))
def test_learning_rate_stays_in_bounds(step: int, warmup: int, total: int) -> None:
    for decay in ("constant", "linear", "cosine"):
        rate = learning_rate(
            step, peak=2.0, floor=0.5, warmup_steps=warmup, decay=decay, total_steps=total
        )
        assert 0.0 < rate <= 2.0
        assert step < warmup or rate >= 0.5


@dataclass
class Options:
    lr: float = 0.0
    clip_grad: float = 1.0
    state_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.clip_grad < 0:
            raise ValueError("clip_grad is negative")


def test_options_pass_through_by_their_own_names() -> None:
    made = from_options(
        Options, {"clip_grad": 0.5, "state_dtype": "bfloat16"}, key="k", ours={"lr": 1.0}
    )
    assert made == Options(lr=1.0, clip_grad=0.5, state_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"clip_gard": 1.0}, "Did you mean 'clip_grad'"),
        ({"lr": 1.0}, "set by rlframe"),
        ({"clip_grad": -1.0}, "clip_grad is negative"),
        ({"state_dtype": "float31"}, "no dtype"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        from_options(Options, given, key="trainer.policy.optimizer", ours={"lr": 1.0})
    assert "trainer.policy.optimizer" in str(error.value)


def test_the_interface_of_an_address() -> None:
    name = interface_of("127.0.0.1")
    assert name is not None
    assert interface_of("203.0.113.7") is None


def learn_in_bfloat16(
    rank: int, world_size: int, init_method: str, directory: str
) -> dict[str, Any]:
    """Two updates in bfloat16 with a checkpoint in between; float32 beside it."""
    from tests.trainer.training_ranks import join_ranks, parameters, update
    from trainer.megatron.training import Training

    layout = LayoutConfig(data=2)
    join_ranks(rank, world_size, init_method, layout)
    plan = plan_of(((4, 2), (0,)), ((1, 3), ()))

    def build(dtype: str) -> Training:
        spec = rank_spec("policy", rank=rank, layout=layout)
        model = dataclasses.replace(spec.model, dtype=dtype)
        return Training(dataclasses.replace(spec, model=model), "cpu")

    narrow, wide, resumed = build("bfloat16"), build("float32"), build("bfloat16")
    first = update(narrow, train_rows(), plan, step=0)
    expected = update(wide, train_rows(), plan, step=0)
    narrow.save(directory, 1)
    assert resumed.load(directory) == 1
    second = [update(t, train_rows(seed=1), plan, step=1) for t in (narrow, resumed)]
    return {
        "dtypes": {str(p.dtype) for p in narrow.model.parameters()},
        "first": first,
        "expected": expected,
        "second": second,
        "weights": (parameters(narrow), parameters(resumed)),
    }


def test_bfloat16_keeps_float32_master_weights(tmp_path: Path) -> None:
    seen, _ = run_ranks(learn_in_bfloat16, 2, directory=str(tmp_path / "policy"))
    assert seen["dtypes"] == {"torch.bfloat16"}
    assert seen["first"]["loss"] == pytest.approx(seen["expected"]["loss"], rel=0.05, abs=0.01)
    assert seen["first"]["grad_norm"] == pytest.approx(seen["expected"]["grad_norm"], rel=0.05)
    assert seen["second"][0] == seen["second"][1]
    ours, resumed = seen["weights"]
    for name, tensor in ours.items():
        np.testing.assert_array_equal(resumed[name], tensor)
