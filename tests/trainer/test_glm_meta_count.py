"""The formulas of `rlframe plan` against operations counted on the real model, at GLM-5.2's full width."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlframe.config.compose import load_config
from rlframe.config.schema import LayoutConfig
from rlframe.model_costs.activations import ids_bytes, layer_bytes
from rlframe.model_costs.family import token_flops, weights_of
from rlframe.model_costs.weights import parameters
from rlframe.model_shapes.family import read_shape
from rlframe.model_shapes.glm import GlmShape
from tests.trainer.spawn import run_ranks

HF = load_config(["model=glm_5_2"]).model.hf_config
MILLION = 1 << 20


def count(rank: int, world_size: int, init_method: str, layers: int, context: int) -> Any:
    from trainer.models.glm.meta_count import count_alone

    return dataclasses.astuple(count_alone(shape_of(layers), context=context, tokens=256))


def shape_of(layers: int) -> GlmShape:
    return GlmShape.from_hf({**HF, "num_hidden_layers": layers, "num_nextn_predict_layers": 0})


@pytest.mark.parametrize(
    ("layers", "context"),
    [(5, 4096), (7, MILLION), (5, 1000), pytest.param(78, MILLION, marks=pytest.mark.slow)],
)
def test_formulas_are_what_the_modules_do(layers: int, context: int) -> None:
    """Layers 0 to 2 are dense and own indexers, 3 to 5 share, 6 owns one. 1000 is less than top_k."""
    (counted,) = run_ranks(count, 1, layers=layers, context=context)
    stored, linear, core, indexer, saved = counted
    shape = shape_of(layers)
    formula = token_flops(shape, context)
    assert stored == parameters(weights_of(shape).backbone())
    assert linear == pytest.approx(formula.linear, rel=0.01)
    assert core == pytest.approx(formula.core, rel=0.01)
    assert indexer == pytest.approx(formula.indexer, rel=0.01)
    if context < shape.index_top_k:
        return  # ids are as wide as the context then
    kept = sum(layer_bytes(shape, i, layout=LayoutConfig(), dtype_bytes=2) for i in range(layers))
    assert saved == pytest.approx(kept + ids_bytes(shape, list(range(layers))), rel=0.05)


def test_a_dense_models_formula_is_what_transformers_does() -> None:
    """One token alone: its only key is its own."""
    hf = {
        "model_type": "qwen3",
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    described = {key: value for key, value in hf.items() if key != "model_type"}
    config = AutoConfig.for_model("qwen3", **described, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False)
    formula = token_flops(read_shape(hf), 1).total
    assert counter.get_total_flops() == pytest.approx(formula, rel=0.01)
