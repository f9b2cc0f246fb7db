"""Models that Megatron has no definition for: rows apart, names as transformers writes them, learning, offload."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlframe.errors import UserError
from rlframe.model_shapes.family import read_shape
from tests.trainer.deepspeed_ranks import (
    CONFIGS,
    PLANS,
    build,
    deepspeed_spec,
    join,
    own_shard,
    update,
    write_model,
)
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import OBJECTIVES, plan_of, train_rows

OTHERS = [kind for kind in CONFIGS if kind != "qwen3"]
ROOT = str(Path(__file__).parents[2])


def learn(
    rank: int, world_size: int, init_method: str, paths: dict[str, str], directory: str
) -> dict[str, Any]:
    """Logprobs of rows in two packings, padded and end to end; three updates; an export."""
    found: dict[str, Any] = {}
    rows = train_rows()
    alone = plan_of(tuple((r,) for r in range(len(rows))))
    for number, (kind, path) in enumerate(paths.items()):
        spec = deepspeed_spec("policy", rank=rank, world_size=1, stage=2, path=path)
        if number == 0:
            join(spec, init_method)
        training = build(spec)
        found[kind] = {"padded": training.logprobs(own_shard(training, rows, PLANS[1][0], MASK))}
        in_rows = own_shard(training, rows, alone, MASK)
        found[kind]["alone"] = training.logprobs(in_rows)
        training._packed = (
            True  # end to end, as flash attention takes it: here by transformers' mask
        )
        found[kind]["packed"] = training.logprobs(own_shard(training, rows, PLANS[1][0], MASK))
        training._packed = False
        losses = [update(training, rows, PLANS[1][0], step=s)["loss"] for s in range(3)]
        training.export_hf(f"{directory}/{kind}")
        found[kind] |= {
            "losses": losses,
            "exported": training.logprobs(own_shard(training, rows, PLANS[1][0], MASK)),
        }
    return found


MASK = ("loss_mask",)


def reference(path: str) -> np.ndarray[Any, Any]:
    """By transformers alone, a row at a time, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    temperature = OBJECTIVES["policy"].temperature  # type: ignore[union-attr]
    columns = []
    for row in train_rows():
        ids = torch.from_numpy(row.token_ids).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0].double() / temperature
        column = np.zeros(len(ids), np.float32)
        chosen = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).flatten()
        column[1:] = np.where(row.loss_mask[1:], chosen.numpy(), 0.0)
        columns.append(column)
    return np.concatenate(columns)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("models")
    return {kind: write_model(directory / kind, kind) for kind in OTHERS}


def test_any_causal_model_trains(models: dict[str, str], tmp_path: Path) -> None:
    (found,) = run_ranks(learn, 1, paths=models, directory=str(tmp_path), timeout_s=500)
    for kind, path in models.items():
        expected = reference(path)
        for form in ("padded", "alone", "packed"):
            np.testing.assert_allclose(
                found[kind][form], expected, atol=2e-5, err_msg=f"{kind} {form}"
            )
        losses = found[kind]["losses"]
        assert losses[-1] < losses[0], kind
        written = reference(str(tmp_path / kind))
        np.testing.assert_allclose(written, found[kind]["exported"], atol=2e-5, err_msg=kind)


def offload(
    rank: int,
    world_size: int,
    init_method: str,
    path: str,
    stage: int,
    there: bool,
    **config: Any,
) -> list[dict[str, float]] | str:
    device = {"device": "cpu"}
    zero = {"offload_optimizer": device} if there else {}
    if there and stage == 3:
        zero |= {"offload_param": device}
    spec = deepspeed_spec(
        "policy", rank=rank, world_size=world_size, stage=stage, path=path, zero=zero, **config
    )
    join(spec, init_method)
    try:
        training = build(spec)
    except UserError as error:
        return str(error)
    return [update(training, train_rows(seed=s), PLANS[world_size][s], step=s) for s in range(2)]


def test_activations_that_are_computed_again_give_the_same(models: dict[str, str]) -> None:
    (plain,) = run_ranks(offload, 1, path=models["gpt2"], stage=2, there=False)
    (again,) = run_ranks(
        offload, 1, path=models["gpt2"], stage=3, there=False, gradient_checkpointing=True
    )
    for ours, theirs in zip(again, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [2, 3])
def test_offloaded_adam_learns_the_same(models: dict[str, str], stage: int) -> None:
    """Compiles DeepSpeed's CPU Adam once a machine; where that can't be, the error says what it takes."""
    (plain,) = run_ranks(offload, 1, path=models["llama"], stage=stage, there=False)
    (found,) = run_ranks(offload, 1, path=models["llama"], stage=stage, there=True, timeout_s=1500)
    if isinstance(found, str):
        assert "compiler and ninja" in found
        pytest.skip(found)
    for ours, theirs in zip(found, plain, strict=True):
        for name in theirs:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-5, abs=2e-6), name


def in_bfloat16(
    rank: int, world_size: int, init_method: str, path: str, directory: str
) -> dict[int, Any]:
    import dataclasses

    found: dict[int, Any] = {}
    for stage in (1, 2, 3):
        spec = deepspeed_spec("policy", rank=rank, world_size=world_size, stage=stage, path=path)
        if stage == 1:
            join(spec, init_method)
        model = dataclasses.replace(spec.model, dtype="bfloat16")
        spec = dataclasses.replace(spec, model=model)
        training, resumed = build(spec), build(spec)
        first = update(training, train_rows(), PLANS[world_size][0], step=0)
        training.save(f"{directory}/{stage}", 1)
        resumed.load(f"{directory}/{stage}")
        second = [
            update(t, train_rows(seed=1), PLANS[world_size][0], step=1) for t in (training, resumed)
        ]
        found[stage] = {"first": first, "second": second}
    return found


def test_bfloat16_keeps_float32_weights(models: dict[str, str], tmp_path: Path) -> None:
    (wide,) = run_ranks(offload, 1, path=models["llama"], stage=2, there=False)
    found, _ = run_ranks(
        in_bfloat16, 2, path=models["llama"], directory=str(tmp_path), timeout_s=500
    )
    assert not isinstance(wide, str)
    for stage, seen in found.items():
        assert seen["first"]["loss"] == pytest.approx(wide[0]["loss"], rel=0.05, abs=0.02), stage
        assert seen["first"]["grad_norm"] == pytest.approx(wide[0]["grad_norm"], rel=0.05), stage
        assert seen["second"][0] == seen["second"][1], stage


def test_a_model_without_a_megatron_definition_says_what_trains_it() -> None:
    with pytest.raises(UserError, match="trainer=deepspeed"):
        read_shape(CONFIGS["gpt2"])


def test_neither_backend_loads_the_other() -> None:
    for ours, theirs in (("deepspeed", "megatron"), ("megatron", "deepspeed")):
        module = "start, trainer.deepspeed.training" if ours == "deepspeed" else "training"
        code = (
            f"import sys, trainer.{ours}.{module};"
            f"print([m for m in sys.modules if m.split('.')[0] == '{theirs}'])"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin", "DS_ACCELERATOR": "cpu"},
        )
        assert run.stdout.strip().splitlines()[-1] == "[]"
