"""Checkpoints as starts: a policy's for policy and critic on any layout, a critic's own, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlframe.config.schema import LayoutConfig
from rlframe.model_shapes.dense import DenseShape
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import TINY
from trainer.megatron.parallel import init_parallel
from trainer.models.hf_names import LM_HEAD, VALUE_HEAD
from trainer.models.model_names import tensor_shapes

LAYOUTS = [LayoutConfig(), LayoutConfig(tensor=2, pipeline=2)]


def loaded_and_exported(
    rank: int, world_size: int, init_method: str, *, layout: LayoutConfig, tied: bool, path: str
) -> dict[str, dict[str, torch.Tensor]]:
    """What policy and critic export, straight after they loaded `path`."""
    from trainer.models.build import build_model
    from trainer.models.hf_bridge import export_hf

    init_parallel(
        layout=layout,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device="cpu",
        timeout_s=60,
        seed=1,
    )
    exported = {}
    for role in ("policy", "critic"):
        model = build_model(
            hf_config=TINY | {"tie_word_embeddings": tied},
            layout=layout,
            transformer={},
            role=role,  # type: ignore[arg-type]
            dtype="float32",
            device="cpu",
            seed=9,
            path=path,
        )
        exported[role] = {n: t.clone() for n, t in export_hf(model)}
    return exported


def checkpoint(directory: Path, *, tied: bool, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """bfloat16 random weights of a policy, in one file."""
    shape = DenseShape.from_hf(TINY | {"tie_word_embeddings": tied})
    shapes = tensor_shapes(shape, role="policy") | {
        name: (67, 32) if name == LM_HEAD else (1, 32) for name in extra
    }
    tensors = {name: torch.randn(size).bfloat16() for name, size in shapes.items()}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    return tensors


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one", "tensor_pipeline"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_policys_checkpoint_starts_both_roles(
    tmp_path: Path, layout: LayoutConfig, tied: bool
) -> None:
    # Some published tied checkpoints hold a copy of the embeddings as the output layer.
    start = checkpoint(tmp_path / "hf", tied=tied, extra=(LM_HEAD,) if tied else ())
    first, *others = run_ranks(
        loaded_and_exported,
        layout.world_size,
        layout=layout,
        tied=tied,
        path=str(tmp_path / "hf"),
    )
    expected = start.keys() - {LM_HEAD} if tied else start.keys()
    assert first["policy"].keys() == expected
    assert first["critic"].keys() == start.keys() - {LM_HEAD} | {VALUE_HEAD}
    for role in ("policy", "critic"):
        for name in first[role].keys() & start.keys():
            assert torch.equal(first[role][name].bfloat16(), start[name]), name
            assert torch.equal(first[role][name], start[name].float()), name
    assert 0 < first["critic"][VALUE_HEAD].std() < 0.1 / 32**0.5 * 2
    assert all(not exported for other in others for exported in other.values())


def critic_continues(rank: int, world_size: int, init_method: str, *, path: str) -> torch.Tensor:
    """The value head of a critic that starts from a critic's checkpoint; its policy is refused."""
    from rlframe.errors import UserError
    from trainer.models.build import build_model

    layout = LayoutConfig()
    init_parallel(
        layout=layout,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device="cpu",
        timeout_s=60,
        seed=1,
    )
    common: dict[str, Any] = {
        "hf_config": TINY,
        "layout": layout,
        "transformer": {},
        "dtype": "bfloat16",
        "device": "cpu",
        "seed": 9,
        "path": path,
    }
    with pytest.raises(UserError, match=r"model.safetensors: tensor 'score.weight' has no place"):
        build_model(role="policy", **common)
    head: torch.Tensor = build_model(role="critic", **common).output_layer.weight.detach()
    return head


def test_a_critics_own_checkpoint_keeps_its_value_head(tmp_path: Path) -> None:
    start = checkpoint(tmp_path / "hf", tied=True, extra=(VALUE_HEAD,))
    (head,) = run_ranks(critic_continues, 1, path=str(tmp_path / "hf"))
    assert torch.equal(head, start[VALUE_HEAD])


def test_the_export_of_a_checkpoint_is_the_checkpoint(tmp_path: Path) -> None:
    start = checkpoint(tmp_path / "hf", tied=False)
    run_ranks(write_again, 1, path=str(tmp_path / "hf"), target=str(tmp_path / "again"))
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == start.keys()
    assert all(torch.equal(again[name], start[name]) for name in start)


def write_again(rank: int, world_size: int, init_method: str, *, path: str, target: str) -> None:
    from trainer.models.build import build_model
    from trainer.models.exported import write_checkpoint

    config = TINY | {"tie_word_embeddings": False}
    init_parallel(
        layout=LayoutConfig(),
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device="cpu",
        timeout_s=60,
        seed=1,
    )
    model = build_model(
        hf_config=config,
        layout=LayoutConfig(),
        transformer={},
        role="policy",
        dtype="bfloat16",
        device="cpu",
        seed=9,
        path=path,
    )
    write_checkpoint(model, config, target)
