"""What stays while a role learns: the reference of a KL penalty, and a critic's frozen attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import plan_of, rank_spec, train_rows
from tests.trainer.training_ranks import join_ranks, own_shard, parameters
from trainer.megatron.training import Training
from trainer.objective import COLUMNS, PolicyObjective, ValueObjective


def learn(rank: int, world_size: int, init_method: str) -> dict[str, object]:
    join_ranks(rank, world_size, init_method, LayoutConfig())
    spec = rank_spec("policy")
    assert isinstance(spec.objective, PolicyObjective)
    objective = replace(spec.objective, kl_coef=0.1, policy_loss="gspo")
    training = Training(replace(spec, keeps_reference=True, objective=objective), "cpu")
    rows, plan = train_rows(), plan_of(((0, 1, 2), (3,)))
    rows = rows[:4]
    read = own_shard(training, rows, plan, ("loss_mask",))
    first = training.logprobs(read)
    rows = [
        replace(
            r, ref_logprobs=r.old_logprobs, loss_weights=r.loss_mask.astype(np.float32) * (i > 0)
        )
        for i, r in enumerate(rows)
    ]
    columns = (*COLUMNS[PolicyObjective], "loss_weights", "ref_logprobs")
    actions = sum(int(row.loss_mask.sum()) for row in rows)
    statistics = training.update(own_shard(training, rows, plan, columns), step=0, actions=actions)
    before, moved = parameters(training), training.logprobs(read)
    reference = training.reference_logprobs(read)
    after = parameters(training)
    return {
        "first": first, "moved": moved, "reference": reference, "statistics": statistics,
        "same": all(np.array_equal(before[n], after[n]) for n in before),
        "left_out": float(rows[0].loss_mask.sum()) / actions,
    }  # fmt: skip


def test_the_reference_stays_while_the_policy_moves() -> None:
    (found,) = run_ranks(learn, 1)
    np.testing.assert_array_equal(found["reference"], found["first"])
    assert np.abs(found["moved"] - found["first"]).max() > 1e-4
    assert found["same"]
    assert found["statistics"]["left_out"] == pytest.approx(found["left_out"])
    assert found["statistics"]["kl_reference"] > 0


def learn_values(rank: int, world_size: int, init_method: str) -> dict[str, bool]:
    join_ranks(rank, world_size, init_method, LayoutConfig())
    training = Training(rank_spec("critic", freeze_attention=True), "cpu")
    rows, plan = train_rows(), plan_of(((0, 1, 2), (3, 4)))
    before = parameters(training)
    actions = sum(int(row.loss_mask.sum()) for row in rows)
    shard = own_shard(training, rows, plan, COLUMNS[ValueObjective])
    training.update(shard, step=0, actions=actions)
    after = parameters(training)
    return {name: bool(np.array_equal(before[name], after[name])) for name in before}


def test_a_critics_frozen_attention_stays_and_the_rest_learns() -> None:
    (stayed,) = run_ranks(learn_values, 1)
    attention = {name for name in stayed if ".self_attn." in name}
    assert attention
    assert {name for name, same in stayed.items() if same} == attention
