"""A GLM-5 computes what transformers 5.23.0 computes: logits, chosen rows, gradients; checkpoints go both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlframe.config.schema import LayoutConfig
from tests.trainer.oracle import ask_glm
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import rows
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.training_ranks import join_ranks, randomise_biases

LENGTHS = (5, 40, 1, 17, 63)  # index_topk is 6
FREQUENCIES = {
    "every_layer": {"index_topk_freq": 1},
    "groups_of_2": {"index_topk_freq": 2},
    "groups_of_4": {"index_topk_freq": 4},
    "top_k_above_lengths": {"index_topk": 64},
    "listed": {
        "indexer_types": ["full", "shared", "full", "full", "shared", "shared"] + ["full"] * 3
    },
}


def compute(
    rank: int, world_size: int, init_method: str, config: dict[str, Any], directory: str
) -> dict[str, Any]:
    """Logits, ids and gradients in every form that this config allows; the checkpoint at `directory`."""
    from trainer.models.build import build_model
    from trainer.models.exported import write_checkpoint
    from trainer.models.packed import PackedBatch, forward

    join_ranks(rank, world_size, init_method, LayoutConfig())
    arguments: dict[str, Any] = {
        "hf_config": config,
        "layout": LayoutConfig(),
        "transformer": {},
        "role": "policy",
        "dtype": "float32",
        "device": "cpu",
        "seed": 3,
    }
    model = build_model(**arguments)
    randomise_biases(model)
    write_checkpoint(model, config, directory)
    forms = ("absorbed", "expanded") if config["index_topk"] >= max(LENGTHS) else ("absorbed",)
    results = {form: _pass(model, form) for form in forms}
    again = build_model(**arguments | {"path": directory, "seed": 4})
    with torch.no_grad():
        results["reloaded"] = forward(again, PackedBatch.from_rows(rows(LENGTHS)))
        results["automatic"] = forward(model, PackedBatch.from_rows(rows(LENGTHS)))
    return results


def _pass(model: Any, form: str) -> dict[str, Any]:
    from trainer.models.hf_bridge import export_hf
    from trainer.models.packed import PackedBatch, forward

    ids = _use_form_and_watch_ids(model, form)
    model.zero_grad()
    logits = forward(model, PackedBatch.from_rows(rows(LENGTHS)))
    (logits * WEIGHTS).square().sum().backward()
    values = {n: p.data for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = torch.zeros(()) if parameter.grad is None else parameter.grad
    gradients = {n: t.clone() for n, t in export_hf(model) if t.ndim}
    for name, parameter in model.named_parameters():
        parameter.data = values[name]
    return {"logits": logits.detach(), "ids": ids, "gradients": gradients}


def _use_form_and_watch_ids(model: Any, form: str) -> dict[int, torch.Tensor]:
    from dataclasses import replace

    from trainer.models.glm.attention import LatentAttention

    ids: dict[int, torch.Tensor] = {}
    model._form = form

    def watch(module: Any, record: Any, packed: Any, output: Any) -> Any:
        ids[record.layer] = record.ids
        return output

    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.place = replace(module.place, form=form)  # type: ignore[arg-type]
            module.observer = watch
    return ids


WEIGHTS = torch.linspace(-1, 1, TINY_GLM["vocab_size"])


@pytest.mark.parametrize("name", FREQUENCIES)
def test_glm_is_transformers_model(name: str, tmp_path: Path) -> None:
    config = TINY_GLM | FREQUENCIES[name]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (given,) = run_ranks(compute, 1, config=config, directory=str(ours))
    expected = ask_glm(
        path=str(ours),
        rows=[torch.from_numpy(row).long() for row in rows(LENGTHS)],
        weights=WEIGHTS,
        save_to=str(theirs),
    )
    assert expected["logits"].std() > 0.1
    for form in given.keys() & {"absorbed", "expanded"}:
        _same(given[form], expected, with_ids=form == "absorbed")
    assert torch.equal(given["reloaded"], given["automatic"])
    assert (given["automatic"] - expected["logits"]).abs().max() < 1e-4
    _same_files(ours, theirs)


def _same(given: dict[str, Any], expected: dict[str, Any], *, with_ids: bool) -> None:
    assert (given["logits"] - expected["logits"]).abs().max() < 1e-4
    for name, gradient in expected["gradients"].items():
        error = (given["gradients"][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-4, f"{name}: {error}"
    if with_ids:
        starts = [s for n, s in zip(LENGTHS, _starts(), strict=True) for _ in range(n)]
        for layer, sets in expected["ids"].items():
            chosen = [
                {s - start for s in row if s >= 0}
                for row, start in zip(given["ids"][layer].tolist(), starts, strict=True)
            ]
            assert chosen == sets, f"layer {layer}"


def _starts() -> list[int]:
    return [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]


def _same_files(ours: Path, theirs: Path) -> None:
    """What transformers writes of what it has read from us, to the bit."""
    first, second = (load_file(path / "model.safetensors") for path in (ours, theirs))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].float(), second[name].float()) for name in first)
