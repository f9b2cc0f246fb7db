"""Tiny GLM-5 checkpoints as transformers writes them, with an MTP layer, which transformers leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

from rlframe.model_shapes.glm import GlmShape
from tests.trainer.tiny_glm import TINY_GLM
from trainer.models.hf_bridge import random_tensor
from trainer.models.model_names import tensor_shapes

WITH_MTP: dict[str, Any] = {**TINY_GLM, "num_nextn_predict_layers": 1}


def write_glm(directory: Path, *, dtype: torch.dtype = torch.bfloat16, mtp: bool = True) -> Path:
    """`directory`, with random weights in `dtype`; the router's biases stay float32."""
    torch.manual_seed(0)
    model = GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**TINY_GLM)).to(dtype)
    model.save_pretrained(directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    hf_config = WITH_MTP if mtp else TINY_GLM
    shape = GlmShape.from_hf(hf_config)
    for name, size in tensor_shapes(shape, role="policy").items():
        if name.startswith(f"model.layers.{shape.layers}."):
            tensors[name] = random_tensor(name, shape, role="policy", seed=1).view(size).to(dtype)
        if name.endswith("e_score_correction_bias"):
            tensors[name] = torch.randn(size)
    save_file(tensors, file, metadata={"format": "pt"})
    saved = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(saved | hf_config))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def read_all(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every file, by the safetensors package."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To the bit, and in dtype."""
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(bits(given[name]), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
