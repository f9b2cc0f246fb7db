"""Both backends learn the same: losses, gradient norms and weights, for every ZeRO stage and every packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.trainer.deepspeed_ranks import (
    PLANS,
    build,
    deepspeed_spec,
    join,
    parameters,
    update,
    write_model,
)
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import rank_spec, train_rows

KINDS = ("policy", "critic", "critic_bins", "sft")
SOME = [("policy", 0), ("policy", 1), ("critic", 2), ("critic_bins", 3), ("policy", 3), ("sft", 3)]
ALL = [(kind, stage) for kind in KINDS for stage in (0, 1, 2, 3)]
STEPS = 2


def megatron(rank: int, world_size: int, init_method: str, path: str) -> dict[str, Any]:
    from rlframe.config.schema import LayoutConfig
    from tests.trainer import training_ranks
    from trainer.megatron.training import Training

    training_ranks.join_ranks(rank, world_size, init_method, LayoutConfig())
    learned = {}
    for kind in KINDS:
        training = Training(rank_spec(kind, path=path), "cpu")
        measured = [
            training_ranks.update(training, train_rows(seed=s), PLANS[1][0], step=s)
            for s in range(STEPS)
        ]
        learned[kind] = {"measured": measured, "weights": training_ranks.parameters(training)}
    return learned


def deepspeed(
    rank: int, world_size: int, init_method: str, path: str, cases: list[tuple[str, int]]
) -> dict[str, Any]:
    learned = {}
    for number, (kind, stage) in enumerate(cases):
        spec = deepspeed_spec(kind, rank=rank, world_size=world_size, stage=stage, path=path)
        if number == 0:
            join(spec, init_method)
        training = build(spec)
        measured = [
            update(training, train_rows(seed=s), PLANS[world_size][s], step=s) for s in range(STEPS)
        ]
        learned[kind, stage] = {"measured": measured, "weights": parameters(training)}
    return learned


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def expected(path: str) -> dict[str, Any]:
    (learned,) = run_ranks(megatron, 1, path=path)
    assert isinstance(learned, dict)
    return learned


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        pytest.param(2, SOME, id="2-some"),
        pytest.param(1, ALL, id="1-all", marks=pytest.mark.slow),
        pytest.param(2, ALL, id="2-all", marks=pytest.mark.slow),
    ],
)
def test_both_backends_learn_the_same(
    path: str, expected: dict[str, Any], world_size: int, cases: list[tuple[str, int]]
) -> None:
    learned, *others = run_ranks(deepspeed, world_size, path=path, cases=cases, timeout_s=500)
    for (kind, stage), ours in learned.items():
        theirs = expected[kind]
        for step in range(STEPS):
            a, b = ours["measured"][step], theirs["measured"][step]
            assert a.keys() == b.keys(), (kind, stage)
            for name in a:
                # The second loss is of weights that have been through one step of each optimizer.
                assert a[name] == pytest.approx(b[name], rel=2e-5, abs=2e-6), (kind, stage, name)
        assert ours["weights"].keys() == theirs["weights"].keys()
        for name, weight in theirs["weights"].items():
            np.testing.assert_allclose(ours["weights"][name], weight, atol=2e-5, err_msg=name)
        for other in others:
            assert other[kind, stage]["measured"] == ours["measured"]
