"""Checkpoints of a GLM-5 in training: continued to the bit, and by any other layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.train_rows import plan_of, rank_spec, train_rows

PLAN = plan_of(((4, 0), (2,), (3, 1)))
KINDS = ("policy", "critic")
LAYOUTS = {
    "experts": LayoutConfig(tensor=2, sequence_parallel=True, expert=2),
    "context": LayoutConfig(context=2),
    "pipeline": LayoutConfig(pipeline=2, pipeline_layers="5+4"),
}
VIRTUAL = LayoutConfig(pipeline=3, virtual_pipeline=2)


def learn(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    steps: range,
    load: str = "",
    save: str = "",
) -> dict[str, Any]:
    """Updates of `steps`; a checkpoint before the last one. Metrics and weights of each role."""
    from tests.trainer.training_ranks import join_ranks, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    seen: dict[str, Any] = {}
    for kind in KINDS:
        training = Training(rank_spec(kind, rank=rank, layout=layout, hf_config=TINY_GLM), "cpu")
        if load:
            assert training.load(f"{load}/{kind}") == steps.start
        metrics = []
        for step in steps:
            if save and step == steps[-1]:
                training.save(f"{save}/{kind}", step)
            metrics.append(update(training, train_rows(seed=step), PLAN, step=step))
        seen[kind] = (metrics[-1], parameters(training))
    return seen


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three steps in one go, and where their state before the last is."""
    saved = str(tmp_path_factory.mktemp("straight"))
    (seen,) = run_ranks(learn, 1, layout=LayoutConfig(), steps=range(3), save=saved)
    return {**seen, "saved": saved}


def test_continuation_is_exact_to_the_bit(straight: dict[str, Any]) -> None:
    (resumed,) = run_ranks(
        learn, 1, layout=LayoutConfig(), steps=range(2, 3), load=straight["saved"]
    )
    for kind in KINDS:
        assert resumed[kind][0] == straight[kind][0]
        for name, expected in straight[kind][1].items():
            np.testing.assert_array_equal(resumed[kind][1][name], expected, err_msg=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_goes_on(straight: dict[str, Any], name: str) -> None:
    layout = LAYOUTS[name]
    ranks = run_ranks(
        learn, layout.world_size, layout=layout, steps=range(2, 3), load=straight["saved"]
    )
    check(ranks[0], straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saver", "loader"),
    [
        (LAYOUTS["experts"], LAYOUTS["pipeline"]),
        (LAYOUTS["pipeline"], LAYOUTS["context"]),
        (VIRTUAL, LAYOUTS["experts"]),
        (LAYOUTS["context"], VIRTUAL),
    ],
)
def test_any_layout_goes_on(
    straight: dict[str, Any], tmp_path: Path, saver: LayoutConfig, loader: LayoutConfig
) -> None:
    run_ranks(learn, saver.world_size, layout=saver, steps=range(3), save=str(tmp_path))
    ranks = run_ranks(
        learn, loader.world_size, layout=loader, steps=range(2, 3), load=str(tmp_path)
    )
    check(ranks[0], straight)


def check(resumed: dict[str, Any], straight: dict[str, Any]) -> None:
    for kind in KINDS:
        for name, expected in straight[kind][1].items():
            np.testing.assert_allclose(
                resumed[kind][1][name], expected, rtol=0, atol=1e-5, err_msg=f"{kind} {name}"
            )
