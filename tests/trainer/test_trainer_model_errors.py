"""What a user can get wrong about a model: each is one message that names the key, file or tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.pipeline import chunks_of
from tests.trainer.tiny import TINY
from trainer.models.hf_files import HfCheckpoint
from trainer.models.hf_names import cut, join, part_shape
from trainer.models.model_names import chunk_entries, tensor_shapes

SHAPE = DenseShape.from_hf(TINY)
EXPECTED = tensor_shapes(SHAPE, role="policy")


def test_rope_theta_is_read_where_old_and_new_checkpoints_keep_it() -> None:
    old = {k: v for k, v in TINY.items() if k != "rope_parameters"} | {"rope_theta": 7.0}
    assert SHAPE.rope_theta == 5000.0
    assert DenseShape.from_hf(old).rope_theta == 7.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen"}, "model type 'qwen' .*Did you mean 'qwen3'"),
        ({"hidden_size": None}, "hidden_size must be an integer of 1 or more, not None"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers must be an integer of 1 or more, not '4'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DenseShape.from_hf(TINY | change)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (LayoutConfig(tensor=3), "trainer.critic.layout.tensor=3 .*num_attention_heads=4"),
        (LayoutConfig(tensor=4), "trainer.critic.layout.tensor=4 .*num_key_value_heads=2"),
        (LayoutConfig(pipeline=3), "trainer.critic.layout.pipeline=3 .*num_hidden_layers=4"),
        (LayoutConfig(sequence_parallel=True), "sequence_parallel=true needs"),
    ],
)
def test_layouts_that_do_not_divide(layout: LayoutConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SHAPE.check_layout(layout, "critic")


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ({"num_layers": 2}, "set model.hf_config.num_hidden_layers instead"),
        ({"tensor_model_parallel_size": 2}, "set trainer.policy.layout.tensor instead"),
        ({"attention_dropout": 0.1}, "transformer.attention_dropout: .*fixes it"),
        ({"recompute_granularty": "full"}, "Did you mean 'recompute_granularity'"),
        ({"recompute_granularity": "half"}, "trainer.policy.transformer: Megatron refuses it"),
    ],
)
def test_transformer_fields_that_are_refused(passed: dict[str, Any], said: str) -> None:
    from trainer.models.transformer import dense_fields, transformer_config

    with pytest.raises(UserError, match=said):
        transformer_config(
            dense_fields(SHAPE),
            layout=LayoutConfig(),
            dtype="float32",
            passed=passed,
            role="policy",
        )


def test_transformer_fields_pass_through() -> None:
    from trainer.models.transformer import dense_fields, transformer_config

    passed = {"hidden_dropout": 0.25, "autocast_dtype": "bfloat16"}
    config = transformer_config(
        dense_fields(SHAPE), layout=LayoutConfig(), dtype="float32", passed=passed, role="policy"
    )
    assert config.hidden_dropout == 0.25
    assert config.autocast_dtype == torch.bfloat16


def whole(directory: Path) -> Path:
    """A complete checkpoint in one file."""
    tensors = {name: torch.zeros(shape) for name, shape in EXPECTED.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory / "model.safetensors"


def change(file: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(NORM), f"model.safetensors: tensor '{NORM}' is missing"),
        (
            lambda t: t.update({NORM: torch.zeros(31)}),
            rf"model.safetensors: tensor '{NORM}' has shape \[31\]; .* it \[32\]",
        ),
        (
            lambda t: t.update({"x.bias": torch.zeros(1)}),
            "model.safetensors: tensor 'x.bias' has no place",
        ),
        (
            lambda t: t.update({NORM: torch.zeros(32, dtype=torch.int32)}),
            f"tensor '{NORM}' is I32; only",
        ),
    ],
    ids=["missing", "shape", "extra", "dtype"],
)
def test_tensors_that_do_not_fit(tmp_path: Path, edit: Any, said: str) -> None:
    change(whole(tmp_path), edit)
    with pytest.raises(UserError, match=said):
        HfCheckpoint(tmp_path).check(EXPECTED, unused=frozenset())


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_files_that_are_cut_short(tmp_path: Path, kept: int) -> None:
    file = whole(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        HfCheckpoint(tmp_path)


def test_directories_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint directory"):
        HfCheckpoint(tmp_path / "absent")
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        HfCheckpoint(tmp_path)


def test_sharded_checkpoints(tmp_path: Path) -> None:
    names = list(EXPECTED)
    tensors = {name: torch.randn(shape) for name, shape in EXPECTED.items()}
    weight_map = {}
    for file, part in (("a.safetensors", names[:7]), ("b.safetensors", names[7:])):
        save_file({n: tensors[n] for n in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = HfCheckpoint(tmp_path)
    checkpoint.check(EXPECTED, unused=frozenset())
    assert all(torch.equal(checkpoint.read(n), tensors[n]) for n in names)

    index.write_text(json.dumps({"weight_map": weight_map | {NORM: "a.safetensors"}}))
    with pytest.raises(UserError, match=f"index.json: tensor '{NORM}' should be in a.safetensors"):
        HfCheckpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {NORM: "c.safetensors"}}))
    with pytest.raises(UserError, match=r"c\.safetensors is missing"):
        HfCheckpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {NORM: "../b.safetensors"}}))
    with pytest.raises(UserError, match="points outside the directory"):
        HfCheckpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match="is not a safetensors index"):
        HfCheckpoint(tmp_path)


@given(
    tensor=st.sampled_from([1, 2, 4]),
    stages=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([1, 2]),
    vocab_size=st.integers(5, 40),
    tied=st.booleans(),
    role=st.sampled_from(["policy", "critic"]),
)
def test_join_undoes_cut(
    tensor: int, stages: int, groups: int, vocab_size: int, tied: bool, role: str
) -> None:
    shape = DenseShape.from_hf(
        TINY
        | {
            "num_key_value_heads": 4,
            "num_attention_heads": 4 * groups,
            "vocab_size": vocab_size,
            "tie_word_embeddings": tied,
        }
    )
    sizes = tensor_shapes(shape, role=role)
    full = {name: torch.randn(size) for name, size in sizes.items()}
    joined: dict[str, torch.Tensor] = {}
    for chunk in chunks_of([4 // stages] * stages):
        for entry in chunk_entries(shape, chunk, role=role):
            parts = [cut(entry, full, rank=r, size=tensor) for r in range(tensor)]
            assert all(p.shape == part_shape(entry, size=tensor) for p in parts)
            if entry.exported:
                joined |= join(entry, parts)
    assert list(joined) == list(sizes)
    assert all(torch.equal(joined[name], full[name]) for name in sizes)
