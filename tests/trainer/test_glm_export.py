"""What a GLM-5 in bfloat16 writes: the same bytes from every layout, the router's bias in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.training_ranks import join_ranks, randomise_biases

LAYOUTS = {
    "experts": LayoutConfig(tensor=2, sequence_parallel=True, expert=2),
    "pipeline": LayoutConfig(pipeline=2),
}


def publish(
    rank: int, world_size: int, init_method: str, layout: LayoutConfig, directory: str, load: str
) -> dict[str, Any]:
    """Publishes version 3 and writes a checkpoint; the manifest's dtypes on rank 0."""
    from trainer.models.build import build_chunks
    from trainer.models.exported import exported, write_checkpoint
    from trainer.weights import WeightPublisher

    join_ranks(rank, world_size, init_method, layout)
    model = build_chunks(
        hf_config=TINY_GLM,
        layout=layout,
        transformer={},
        role="policy",
        dtype="bfloat16",
        device="cpu",
        seed=3,
        path=load,
    )
    if not load:
        randomise_biases(model)
    manifest = WeightPublisher(exported(model)).publish(3, f"{directory}/published")
    write_checkpoint(model, TINY_GLM, f"{directory}/checkpoint")
    return {n: t.dtype for n, t in manifest.tensors.items()} if manifest is not None else {}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    (dtypes,) = run_ranks(publish, 1, layout=LayoutConfig(), directory=str(directory), load="")
    of_biases = {t for n, t in dtypes.items() if n.endswith("e_score_correction_bias")}
    assert of_biases == {"F32"}
    assert {t for n, t in dtypes.items() if not n.endswith("correction_bias")} == {"BF16"}
    return directory


def tensors(directory: Path) -> list[dict[str, torch.Tensor]]:
    files = ("published/1/model.safetensors", "checkpoint/model.safetensors")
    return [load_file(directory / file) for file in files]


def test_biases_keep_their_digits(one_rank: Path) -> None:
    published, written = tensors(one_rank)
    assert published.keys() == written.keys()
    bias = written["model.layers.3.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32
    assert not torch.equal(bias, bias.bfloat16().float())


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_write_what_they_loaded(one_rank: Path, tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    loaded = str(one_rank / "checkpoint")
    run_ranks(publish, layout.world_size, layout=layout, directory=str(tmp_path), load=loaded)
    for given, expected in zip(tensors(tmp_path), tensors(one_rank), strict=True):
        assert given.keys() == expected.keys()
        for tensor, there in expected.items():
            assert given[tensor].dtype == there.dtype
            assert torch.equal(given[tensor], there), tensor
