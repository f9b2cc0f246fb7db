"""Teachers on the policy's ranks against transformers in float64: value and gradient of a divergence, any layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlframe.config.schema import LayoutConfig
from rlframe.types import BatchPlan, TrainRow
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import TINY
from tests.trainer.train_rows import plan_of, rank_spec, train_rows
from tests.trainer.training_ranks import join_ranks, own_shard, parameters
from trainer.megatron import teacher_passes
from trainer.megatron.passes import forward_only
from trainer.megatron.training import Training
from trainer.objective import COLUMNS, DistillationObjective, PolicyObjective

TEACHER_OF = (0, 1, 1, 0, 1)
WHOLE = plan_of(((0, 1, 2, 3, 4),))
LAYOUTS: dict[str, tuple[LayoutConfig, BatchPlan]] = {
    "one": (LayoutConfig(), plan_of(((4, 0), (2,), (3, 1), ()))),
    "tensor": (LayoutConfig(tensor=2, sequence_parallel=True), WHOLE),
    "pipeline": (LayoutConfig(pipeline=2), plan_of(((4, 0), (2,), (3, 1)))),
    "data": (LayoutConfig(data=2), plan_of(((4, 2), (0,)), ((1, 3), ()))),
    "context": (LayoutConfig(context=2), WHOLE),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Student, then two teachers."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        directory = tmp_path_factory.mktemp(f"model_{seed}")
        Qwen3ForCausalLM(Qwen3Config(**TINY)).float().save_pretrained(directory)
        found.append(str(directory))
    return found


def rows_with_teachers() -> list[TrainRow]:
    return [
        replace(
            row,
            advantages=np.zeros_like(row.advantages),
            teacher_index=np.full(len(row.token_ids), index, np.int32),
            teacher_weights=np.full(len(row.token_ids), 1.0 + index, np.float32),
        )
        for row, index in zip(train_rows(), TEACHER_OF, strict=True)
    ]


def learn(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    plan: BatchPlan,
    paths: list[str],
    kind: str,
) -> dict[str, Any]:
    join_ranks(rank, world_size, init_method, layout)
    spec = rank_spec("policy", rank=rank, layout=layout, path=paths[0])
    assert isinstance(spec.objective, PolicyObjective)
    objective = replace(
        spec.objective,
        entropy_coef=0.0,
        distillation=DistillationObjective(kind, coef=0.5, beta=0.3, temperature=0.9),
    )
    training = Training(replace(spec, objective=objective, teachers=tuple(paths[1:])), "cpu")
    rows = rows_with_teachers()
    before = parameters(training)
    read = training.teacher_logprobs(
        own_shard(training, rows, plan, ("loss_mask", "teacher_index"))
    )
    columns = (*COLUMNS[PolicyObjective], "teacher_weights", "teacher_index")
    actions = sum(int(row.loss_mask.sum()) for row in rows)
    after = parameters(training)
    statistics = training.update(own_shard(training, rows, plan, columns), step=0, actions=actions)
    return {
        "statistics": statistics,
        "same": all(np.array_equal(before[name], after[name]) for name in before),
        "read": read,
    }


def logits_of(path: str, row: TrainRow) -> torch.Tensor:
    """[T - 1, V] float64, of the tokens from 1 on."""
    model = _model(path)
    ids = torch.from_numpy(row.token_ids.astype(np.int64))[None]
    return model(ids).logits[0, :-1]


_MODELS: dict[str, Any] = {}


def _model(path: str) -> Any:
    if path not in _MODELS:
        _MODELS[path] = Qwen3ForCausalLM.from_pretrained(path).double()
    return _MODELS[path]


def expected(paths: list[str], kind: str) -> tuple[float, float]:
    """Mean divergence over actions, and the norm of the loss's gradient."""
    student, total, loss, actions = _model(paths[0]), 0.0, torch.zeros(()).double(), 0
    student.zero_grad()
    for row, index in zip(rows_with_teachers(), TEACHER_OF, strict=True):
        mask = torch.from_numpy(row.loss_mask[1:])
        actions += int(mask.sum())
        if len(row.token_ids) < 2:
            continue
        q = torch.log_softmax(logits_of(paths[0], row)[mask] / 0.9, -1)
        with torch.no_grad():
            p = torch.log_softmax(logits_of(paths[1 + index], row)[mask] / 0.9, -1)
        if kind == "reverse_kl":
            each = (q.exp() * (q - p)).sum(-1)
        else:
            m = 0.3 * p.exp() + 0.7 * q.exp()
            each = (0.3 * p.exp() * (p - m.log()) + 0.7 * q.exp() * (q - m.log())).sum(-1)
        total += float(each.detach().sum())
        loss = loss + 0.5 * (1.0 + index) * each.sum()
    (loss / actions).backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters()]).norm()
    return total / actions, float(norm)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("one", "reverse_kl"),
        ("one", "jsd"),
        ("tensor", "jsd"),
        pytest.param("pipeline", "reverse_kl", marks=pytest.mark.slow),
        pytest.param("data", "reverse_kl", marks=pytest.mark.slow),
        pytest.param("context", "jsd", marks=pytest.mark.slow),
    ],
)
def test_a_divergence_from_teachers_on_the_ranks(
    checkpoints: list[str], name: str, kind: str
) -> None:
    layout, plan = LAYOUTS[name]
    found = run_ranks(
        learn, layout.world_size, layout=layout, plan=plan, paths=checkpoints, kind=kind
    )
    divergence, norm = expected(checkpoints, kind)
    answers = [f["statistics"] for f in found if f["statistics"]]
    assert answers
    for statistics in answers:
        assert statistics["teacher_divergence"] == pytest.approx(divergence, rel=1e-5)
        assert statistics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert all(f["same"] for f in found)


def learn_more_than_once(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    plans: list[BatchPlan],
    steps: list[int],
    paths: list[str],
    keeps: bool,
) -> list[dict[str, Any]]:
    """By update: its statistics, and of how many tokens this rank's teachers made states."""
    join_ranks(rank, world_size, init_method, layout)
    spec = rank_spec("policy", rank=rank, layout=layout, path=paths[0])
    assert isinstance(spec.objective, PolicyObjective)
    objective = replace(spec.objective, distillation=DistillationObjective("reverse_kl", coef=0.5))
    training = Training(
        replace(spec, objective=objective, teachers=tuple(paths[1:]), keeps_teacher_states=keeps),
        "cpu",
    )
    read = 0

    def counted(model: Any, batches: list[Any], readout: Any) -> Any:
        nonlocal read
        read += sum(batch.tokens for batch in batches)
        return forward_only(model, batches, readout)

    teacher_passes.forward_only = counted
    rows, found = rows_with_teachers(), []
    columns = (*COLUMNS[PolicyObjective], "teacher_weights", "teacher_index")
    actions = sum(int(row.loss_mask.sum()) for row in rows)
    for plan, step in zip(plans, steps, strict=True):
        read = 0
        shard = own_shard(training, rows, plan, columns)
        statistics = training.update(shard, step=step, actions=actions)
        found.append({"statistics": statistics, "read": read})
    return found


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("one", plan_of(((1, 2), (), (0, 3), (4,)))),
        pytest.param("pipeline", plan_of(((1, 2), (0, 3), (4,))), marks=pytest.mark.slow),
        # Rows 0 and 1 change places: each rank's teachers read one row more.
        pytest.param("data", plan_of(((1, 4), (2,)), ((0, 3), ())), marks=pytest.mark.slow),
        pytest.param("context", WHOLE, marks=pytest.mark.slow),
    ],
)
def test_what_teachers_said_is_kept_for_the_updates_of_a_step(
    checkpoints: list[str], name: str, again: BatchPlan
) -> None:
    layout, plan = LAYOUTS[name]
    plans, steps = [plan, again, again], [0, 0, 1]
    kept, anew = (
        run_ranks(
            learn_more_than_once,
            layout.world_size,
            layout=layout,
            plans=plans,
            steps=steps,
            paths=checkpoints,
            keeps=keeps,
        )
        for keeps in (True, False)
    )
    for of_kept, of_anew in zip(kept, anew, strict=True):
        for update, reference in zip(of_kept, of_anew, strict=True):
            if reference["statistics"]:
                assert update["statistics"] == pytest.approx(reference["statistics"], rel=1e-4)
    lengths = [len(row.token_ids) for row in rows_with_teachers()]
    moved = lengths[0] + lengths[1]
    second = {"one": 0, "pipeline": 0, "data": moved}
    total = [sum(rank[update]["read"] for rank in kept) for update in range(3)]
    everything = [sum(rank[update]["read"] for rank in anew) for update in range(3)]
    assert total[0] == everything[0]
    assert total[2] == everything[2]
    assert total[1] == second.get(name, everything[1])


def test_each_row_is_read_by_its_own_teacher_at_temperature_one(checkpoints: list[str]) -> None:
    (found,) = run_ranks(
        learn, 1, layout=LayoutConfig(), plan=WHOLE, paths=checkpoints, kind="reverse_kl"
    )
    reads = []
    for row, index in zip(rows_with_teachers(), TEACHER_OF, strict=True):
        own = np.zeros(len(row.token_ids), np.float32)
        if len(own) > 1:
            with torch.no_grad():
                p = torch.log_softmax(logits_of(checkpoints[1 + index], row), -1)
            ids = torch.from_numpy(row.token_ids[1:].astype(np.int64))
            own[1:] = p.gather(1, ids[:, None])[:, 0].numpy()
        reads.append(np.where(row.loss_mask, own, 0.0))
    np.testing.assert_allclose(found["read"], np.concatenate(reads), atol=2e-5)
