"""Published weights and written checkpoints: what an engine and transformers find there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlframe.config.schema import LayoutConfig
from rlframe.weights import MANIFEST, open_directory, read_manifest, verify
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import plan_of, rank_spec, train_rows

WHOLE = plan_of(((4, 0), (2,), (3, 1)))
LAYOUTS = [LayoutConfig(), LayoutConfig(tensor=2), LayoutConfig(pipeline=2)]


def publish(
    rank: int, world_size: int, init_method: str, layout: LayoutConfig, dtype: str, directory: str
) -> dict[str, Any]:
    """Versions 0, 1 and 2 with an update between, a checkpoint of each role; rank 0's weights."""
    from tests.trainer.training_ranks import join_ranks, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    seen: dict[str, Any] = {"weights": []}
    for kind in ("policy", "critic"):
        spec = rank_spec(kind, rank=rank, layout=layout)
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, dtype=dtype))
        training = Training(spec, "cpu")
        if kind == "policy":
            seen["manifests"] = []
            for version in range(3):
                manifest = training.export(version, f"{directory}/published")
                seen["manifests"].append(manifest)
                seen["weights"].append(parameters(training))
                update(training, train_rows(seed=version), WHOLE, step=version)
        training.export_hf(f"{directory}/{kind}")
        training.export_hf(f"{directory}/{kind}")  # replaces itself
        seen[kind] = parameters(training)
        shard = train_rows()[3]
        seen[f"{kind} row"] = shard.token_ids
        if kind == "policy":
            again = dataclasses.replace(
                spec, model=dataclasses.replace(spec.model, path=f"{directory}/policy")
            )
            seen["again"] = parameters(Training(again, "cpu"))
    return seen


def as_floats(directory: str, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    floats = {}
    for name, stored in open_directory(directory).items():
        assert stored.dtype == {"float32": "F32", "bfloat16": "BF16"}[dtype]
        words = np.asarray(stored.data).view(np.uint32 if dtype == "float32" else np.uint16)
        bits = words if dtype == "float32" else words.astype(np.uint32) << 16
        floats[name] = bits.view(np.float32).reshape(stored.shape)
    return floats


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(layout, "float32") for layout in LAYOUTS] + [(LayoutConfig(), "bfloat16")],
)
def test_published_bytes_are_the_model(layout: LayoutConfig, dtype: str, tmp_path: Path) -> None:
    ranks = run_ranks(
        publish, layout.world_size, layout=layout, dtype=dtype, directory=str(tmp_path)
    )
    seen = ranks[0]
    zero, one, two = seen["manifests"]
    assert all(rank["manifests"] == [None] * 3 for rank in ranks[1:])
    assert zero.directory == two.directory != one.directory
    assert zero.tensors != two.tensors
    for version, manifest in ((1, one), (2, two)):
        assert manifest.version == version
        assert verify(manifest) == []
        assert read_manifest(manifest.directory) == manifest
        assert_same(as_floats(manifest.directory, dtype), seen["weights"][version])
    assert verify(zero) != []  # its place was taken by version 2
    assert_same(as_floats(str(tmp_path / "policy"), dtype), seen["policy"])
    assert_same(seen["again"], seen["policy"])
    assert json.loads((tmp_path / "critic" / "config.json").read_text())["dtype"] == dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["critic", "policy", "published"]


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    """Policy and critic, by the classes that their configs name, and nothing is missing or left over."""
    import transformers

    (seen,) = run_ranks(publish, 1, layout=LayoutConfig(), dtype="float32", directory=str(tmp_path))
    for kind, auto in (
        ("policy", transformers.AutoModelForCausalLM),
        ("critic", transformers.AutoModelForSequenceClassification),
    ):
        model, told = auto.from_pretrained(str(tmp_path / kind), output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        loaded = dict(model.named_parameters())
        for name, tensor in seen[kind].items():
            np.testing.assert_array_equal(loaded[name].detach().numpy(), tensor, err_msg=name)


def test_a_slot_that_is_being_rewritten_is_not_published(tmp_path: Path) -> None:
    """The manifest goes before the first byte of a new version is written."""
    run_ranks(publish, 1, layout=LayoutConfig(), dtype="float32", directory=str(tmp_path))
    run_ranks(break_off, 1, directory=str(tmp_path / "published"))
    assert not (tmp_path / "published" / "1" / MANIFEST).exists()
    assert (tmp_path / "published" / "0" / MANIFEST).exists()


def break_off(rank: int, world_size: int, init_method: str, directory: str) -> None:
    """Publishing version 3 (slot 1) fails half-way."""
    from tests.trainer.training_ranks import join_ranks
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, LayoutConfig())
    training = Training(rank_spec("policy"), "cpu")
    training.model[0].role = "critic"  # other tensors than the model has
    with pytest.raises(Exception, match="output_layer"):
        training.export(3, directory)
