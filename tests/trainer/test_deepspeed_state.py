"""What DeepSpeed ranks keep: checkpoints for any number of ranks and any stage, what stays, what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlframe.errors import UserError
from rlframe.weights import verify
from tests.trainer.deepspeed_ranks import (
    PLANS,
    build,
    deepspeed_spec,
    join,
    own_shard,
    parameters,
    update,
    write_model,
)
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import train_rows


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("qwen3"))


def save_and_go_on(
    rank: int, world_size: int, init_method: str, path: str, directory: str, cases: list[Any]
) -> list[dict[str, float]]:
    """After each case's checkpoint, one more update."""
    results = []
    for number, (kind, stage, options) in enumerate(cases):
        spec = deepspeed_spec(
            kind, rank=rank, world_size=world_size, stage=stage, path=path, **options
        )
        if number == 0:
            join(spec, init_method)
        training = build(spec)
        for step in range(2):
            update(training, train_rows(seed=step), PLANS[world_size][0], step=step)
        training.save(f"{directory}/{number}", 2)
        results.append(update(training, train_rows(seed=2), PLANS[world_size][0], step=2))
    return results


def load_and_go_on(
    rank: int, world_size: int, init_method: str, path: str, loads: list[Any]
) -> list[dict[str, Any]]:
    results = []
    for number, (kind, stage, options, directory) in enumerate(loads):
        spec = deepspeed_spec(
            kind, rank=rank, world_size=world_size, stage=stage, path=path, **options
        )
        if number == 0:
            join(spec, init_method)
        training = build(spec)
        step = training.load(directory)
        measured = update(training, train_rows(seed=2), PLANS[world_size][0], step=step)
        results.append(measured | {"step": step})
    return results


SGD = {"optimizer": {"optimizer": "sgd", "weight_decay": 0.0}}
OFFLOAD = {"zero": {"offload_optimizer": {"device": "cpu"}}}
CASES = [("policy", 0, {}), ("policy", 2, {}), ("policy", 3, {}), ("critic", 1, SGD)]


def test_a_checkpoint_is_gone_on_with_on_another_number_of_ranks_and_in_another_stage(
    path: str, tmp_path: Path
) -> None:
    on_two, _ = run_ranks(
        save_and_go_on, 2, path=path, directory=str(tmp_path), cases=CASES, timeout_s=500
    )
    for number in range(len(CASES)):
        files = {file.name for file in (tmp_path / str(number)).iterdir()}
        assert files == {
            "role.json",
            "state.json",
            "rank_0.safetensors",
            "rank_1.safetensors",
        }
    crossed = [3, 1, 0, 3]
    loads = [
        (kind, stage, options, f"{tmp_path}/{number}")
        for number, ((kind, _, options), stage) in enumerate(zip(CASES, crossed, strict=True))
    ]
    (on_one,) = run_ranks(load_and_go_on, 1, path=path, loads=loads, timeout_s=500)
    for there, here in zip(on_two, on_one, strict=True):
        assert here["step"] == 2
        for name in there:
            assert here[name] == pytest.approx(there[name], rel=3e-5, abs=3e-6), name


def refuse(
    rank: int, world_size: int, init_method: str, path: str, directory: str
) -> dict[str, Any]:
    """Steps that are left out, and checkpoints that do not fit."""
    spec = deepspeed_spec(
        "policy", rank=rank, world_size=world_size, stage=2, path=path, grad_norm_limit=0.01
    )
    join(spec, init_method)
    found: dict[str, Any] = {}
    for stage in (0, 2, 3):
        training = build(
            deepspeed_spec(
                "policy",
                rank=rank,
                world_size=world_size,
                stage=stage,
                path=path,
                grad_norm_limit=0.01,
            )
        )
        before = parameters(training)
        limited = update(training, train_rows(), PLANS[world_size][0], step=0)
        broken = [
            replace(row, advantages=row.advantages * np.float32(np.nan)) for row in train_rows()
        ]
        nan = update(training, broken, PLANS[world_size][0], step=0)
        after = parameters(training)
        found[str(stage)] = {
            "limited": limited,
            "nan": nan,
            "same": all(np.array_equal(before[n], after[n]) for n in before),
        }
    training.save(directory, 1)
    critic = build(deepspeed_spec("critic", rank=rank, world_size=world_size, stage=1, path=path))
    role = Path(directory, "role.json")
    for name, change in (("critic", {}), ("megatron", {"role": "critic", "backend": "megatron"})):
        role.write_text(json.dumps(json.loads(role.read_text()) | change))
        try:
            critic.load(directory)
        except UserError as error:
            found[name] = str(error)
    role.write_text(json.dumps(json.loads(role.read_text()) | {"backend": "deepspeed"}))
    try:
        critic.load(directory)
    except UserError as error:
        found["model"] = str(error)
    return found


def test_a_step_that_can_not_be_trusted_changes_nothing(path: str, tmp_path: Path) -> None:
    (found,) = run_ranks(refuse, 1, path=path, directory=str(tmp_path / "policy"), timeout_s=500)
    for stage in ("0", "2", "3"):
        limited, nan = found[stage]["limited"], found[stage]["nan"]
        assert limited["skipped"] == 1
        assert limited["grad_norm"] > 1
        assert nan["skipped"] == 1
        assert not np.isfinite(nan["loss"])
        assert not np.isfinite(nan["grad_norm"])
        assert found[stage]["same"]
    assert "not of the critic" in found["critic"]
    assert "trainer=megatron" in found["megatron"]
    assert "can't be read" in found["model"]


def keep(rank: int, world_size: int, init_method: str, path: str, directory: str) -> dict[str, Any]:
    """The reference of a KL penalty, a critic's frozen attention, and what is published."""
    rows, plan = train_rows(), PLANS[world_size][0]
    found: dict[str, Any] = {}
    for stage in (1, 3):
        spec = deepspeed_spec("policy", rank=rank, world_size=world_size, stage=stage, path=path)
        if stage == 1:
            join(spec, init_method)
        policy = build(replace(spec, keeps_reference=True))
        read = own_shard(policy, rows, plan, ("loss_mask",))
        first = policy.logprobs(read)
        update(policy, rows, plan, step=0)
        before, moved = parameters(policy), policy.logprobs(read)
        reference = policy.reference_logprobs(read)
        after, again = parameters(policy), policy.logprobs(read)
        manifest = policy.export(3, f"{directory}/{stage}")
        shared = policy.share(4)
        policy.export_hf(f"{directory}/hf{stage}")
        found[f"policy{stage}"] = {
            "first": first,
            "moved": moved,
            "again": again,
            "reference": reference,
            "same": all(np.array_equal(before[n], after[n]) for n in before),
            "problems": None if manifest is None else verify(manifest),
            "shared": None if shared is None else sorted(shared.tensors),
            "names": sorted(before),
        }
        critic = build(
            deepspeed_spec(
                "critic",
                rank=rank,
                world_size=world_size,
                stage=stage,
                path=path,
                freeze_attention=True,
            )
        )
        start = parameters(critic)
        update(critic, rows, plan, step=0)
        end = parameters(critic)
        critic.export_hf(f"{directory}/critic{stage}")
        found[f"stayed{stage}"] = [n for n in start if np.array_equal(start[n], end[n])]
        found[f"learnt{stage}"] = [n for n in start if not np.array_equal(start[n], end[n])]
    return found


def test_what_stays_and_what_leaves(path: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    found, other = run_ranks(keep, 2, path=path, directory=str(tmp_path), timeout_s=500)
    for stage in (1, 3):
        for ranks in (found, other):
            policy = ranks[f"policy{stage}"]
            np.testing.assert_array_equal(policy["reference"], policy["first"])
            np.testing.assert_array_equal(policy["again"], policy["moved"])
            assert np.abs(policy["moved"] - policy["first"]).max() > 1e-4
        assert policy["same"]
        policy = found[f"policy{stage}"]
        assert policy["problems"] == []
        assert policy["shared"] == policy["names"]
        attention = {n for n in found[f"stayed{stage}"] if ".self_attn." in n}
        assert attention == set(found[f"stayed{stage}"])
        assert "score.weight" in found[f"learnt{stage}"]
        _, loading = AutoModelForCausalLM.from_pretrained(
            tmp_path / f"hf{stage}", output_loading_info=True
        )
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
        _, loading = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / f"critic{stage}", output_loading_info=True
        )
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
