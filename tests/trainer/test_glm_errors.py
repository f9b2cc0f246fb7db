"""What can be wrong about a GLM-5 and its checkpoint: messages that name the key, the tensor, the layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.glm_layout import check_layout, glm_chunks
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.training_ranks import join_ranks
from trainer.models.hf_names import cut, join, part_shape
from trainer.models.model_names import chunk_entries, tensor_shapes

SHAPE = GlmShape.from_hf(TINY_GLM)
NORM, KEYS = "model.norm.weight", "model.layers.3.self_attn.indexer.wk.weight"


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (LayoutConfig(tensor=3), r"tensor=3 does not divide .*num_attention_heads=4; .*: 1, 2, 4"),
        (LayoutConfig(tensor=2), r"tensor=2 needs .*sequence_parallel=true.*expert=2"),
        (LayoutConfig(sequence_parallel=True), "sequence_parallel=true needs k.tensor of 2"),
        (LayoutConfig(data=3, expert=3), r"expert=3 .*n_routed_experts=8; .*: 1, 2, 4, 8"),
        (LayoutConfig(data=2, expert=4), r"expert=4 does not divide the 2 ranks .*: 1, 2$"),
        (LayoutConfig(pipeline=10), "10 parts of 9 layers; at most 9"),
        (LayoutConfig(pipeline=2, virtual_pipeline=2), "virtual_pipeline=2 needs .* 3 or more"),
        (LayoutConfig(pipeline=2, pipeline_layers="5+5"), r"5\+5 must be 2 .*example 6\+3"),
        (LayoutConfig(pipeline=2, pipeline_layers="9"), r"=9 must be 2 .*example 6\+3"),
        (LayoutConfig(pipeline=2, pipeline_layers="9+x"), r"=9\+x must be 2 .*example 6\+3"),
    ],
)
def test_layouts_that_cannot_hold_the_model(layout: LayoutConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_layout(SHAPE, layout, key="k")


def test_glm_5_2s_stages_begin_with_indexers() -> None:
    full = [0, 1, 2, *range(6, 78, 4)]
    types = ["full" if layer in full else "shared" for layer in range(78)]
    shape = GlmShape.from_hf(TINY_GLM | {"num_hidden_layers": 78, "indexer_types": types})
    for stages in (2, 4, 8, 13):
        layout = LayoutConfig(pipeline=stages)
        chunks = glm_chunks(shape, layout)
        assert all(shape.indexer_types[chunk.first] for chunk in chunks)
        assert max(len(chunk.layers) for chunk in chunks) < 78 / stages + 4


@given(
    stages=st.integers(1, 4),
    virtual=st.integers(1, 2),
    types=st.lists(st.booleans(), min_size=8, max_size=14),
)
def test_parts_cover_the_layers_in_order(stages: int, virtual: int, types: list[bool]) -> None:
    words = ["full", *("full" if full else "shared" for full in types)]
    shape = GlmShape.from_hf(TINY_GLM | {"num_hidden_layers": len(words), "indexer_types": words})
    chunks = glm_chunks(shape, LayoutConfig(pipeline=stages, virtual_pipeline=virtual))
    assert len(chunks) == stages * virtual
    assert [layer for chunk in chunks for layer in chunk.layers] == list(range(len(words)))
    assert all(len(chunk.layers) >= 1 for chunk in chunks)
    if sum(shape.indexer_types) >= len(chunks):
        assert all(shape.indexer_types[chunk.first] for chunk in chunks)


@given(tensor=st.sampled_from([1, 2]), stages=st.integers(1, 4), experts=st.sampled_from([1, 2, 4]))
def test_join_undoes_cut(tensor: int, stages: int, experts: int) -> None:
    sizes = tensor_shapes(SHAPE, role="policy")
    full = {name: torch.randn(size) for name, size in sizes.items()}
    joined: dict[str, torch.Tensor] = {}
    for chunk in glm_chunks(SHAPE, LayoutConfig(pipeline=stages)):
        for entry in chunk_entries(SHAPE, chunk, role="policy", expert_ranks=experts):
            parts = [cut(entry, full, rank=r, size=tensor) for r in range(tensor)]
            assert all(p.shape == part_shape(entry, size=tensor) for p in parts)
            joined |= join(entry, parts)
    assert list(joined) == list(sizes)
    assert all(torch.equal(joined[name], full[name]) for name in sizes)


def test_each_expert_is_on_one_rank() -> None:
    (chunk,) = glm_chunks(SHAPE, LayoutConfig())
    by_rank = [
        {
            name
            for entry in chunk_entries(
                SHAPE, chunk, role="policy", expert_ranks=4, expert_rank=rank
            )
            for name in entry.tensors
            if ".experts." in name
        }
        for rank in range(4)
    ]
    together = [name for names in by_rank for name in names]
    assert sorted(together) == sorted(set(together))
    assert set(together) == {n for n in tensor_shapes(SHAPE, role="policy") if ".experts." in n}


def load(rank: int, world_size: int, init_method: str, path: str) -> None:
    from trainer.models.build import build_model

    join_ranks(rank, world_size, init_method, LayoutConfig())
    build_model(
        hf_config=TINY_GLM,
        layout=LayoutConfig(),
        transformer={},
        role="policy",
        dtype="float32",
        device="cpu",
        seed=3,
        path=path,
    )


def spoil(name: str, at: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[at] = torch.nan

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda t: (t.pop(NORM), t.pop("model.layers.2.self_attn.indexer.wk.weight")),
            [f"'{NORM}' is missing", "layers.2.self_attn.indexer.wk.weight' is missing"],
        ),
        (
            lambda t: t.update({NORM: torch.zeros(3), "x": torch.zeros(1)}),
            [rf"'{NORM}' has shape \[3\]; .* it \[64\]", "'x' has no place"],
        ),
        (
            lambda t: t.update({KEYS: torch.zeros(16, 64)}),
            [rf"'{KEYS}' has no place.* Layer 3 has no indexer: .* layer 2"],
        ),
        (
            spoil("model.layers.4.mlp.experts.5.up_proj.weight", 7),
            [
                r"model\.safetensors: tensor 'model.layers.4.mlp.experts.5.up_proj.weight' .*not finite"
            ],
        ),
    ],
    ids=["missing", "shape_and_extra", "indexer_on_a_shared_layer", "nan"],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, edit: Any, said: list[str]) -> None:
    tensors = {n: torch.zeros(size) for n, size in tensor_shapes(SHAPE, role="policy").items()}
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError) as failure:
        run_ranks(load, 1, path=str(tmp_path))
    for words in said:
        failure.match(words)


def too_long(rank: int, world_size: int, init_method: str) -> str:
    from trainer.models.build import build_model
    from trainer.models.packed import PackedBatch, forward

    join_ranks(rank, world_size, init_method, LayoutConfig())
    model = build_model(
        hf_config=TINY_GLM | {"max_position_embeddings": 20},
        layout=LayoutConfig(),
        transformer={},
        role="policy",
        dtype="float32",
        device="cpu",
        seed=3,
    )
    forward(model, PackedBatch.from_rows([np.arange(20), np.arange(20)]))
    with pytest.raises(UserError) as failure:
        forward(model, PackedBatch.from_rows([np.arange(21)]))
    return str(failure.value)


def test_sequences_longer_than_the_positions() -> None:
    (said,) = run_ranks(too_long, 1)
    assert "21 tokens" in said
    assert "max_position_embeddings=20" in said
