"""Formulas against published figures, transformers' parameters, and sums made another way."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from rlframe.config.compose import load_config
from rlframe.config.schema import LayoutConfig
from rlframe.model_costs.family import token_flops, weights_of
from rlframe.model_costs.flops import draft_flops, every_layer_indexed, keys_seen, sharing_ratios
from rlframe.model_costs.kv_cache import glm_kv_caches
from rlframe.model_costs.layouts import RESERVED_BYTES, layout_problem, smallest_fitting
from rlframe.model_costs.training_memory import rank_memories
from rlframe.model_costs.weights import active, parameters
from rlframe.model_shapes.family import read_shape
from rlframe.model_shapes.glm import GlmShape

HF = load_config(["model=glm_5_2"]).model.hf_config
GLM = GlmShape.from_hf(HF)
QWEN = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
MILLION = 1 << 20


def test_glm_5_2_has_the_published_sizes():
    model = weights_of(GLM)
    assert parameters(model.backbone()) + parameters(model.mtp) == 753_329_940_480
    assert active(model.backbone()) == 40_297_758_720
    assert sum(GLM.indexer_types) == 21


def meta_parameters(hf_config):
    """transformers' own modules on the meta device: no memory is taken."""
    described = {k: v for k, v in hf_config.items() if k != "model_type"}
    config = AutoConfig.for_model(hf_config["model_type"], **described)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    kept = {name: t for name, t in tensors if "inv_freq" not in name}
    return sum(t.numel() for t in kept.values())


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_has_as_many_parameters_as_transformers_says(tied):
    hf = QWEN | {"tie_word_embeddings": tied}
    assert parameters(weights_of(read_shape(hf)).backbone()) == meta_parameters(hf)


def test_the_whole_glm_5_2_has_as_many_parameters_as_transformers_says():
    """It has no MTP layer."""
    assert meta_parameters(HF) == parameters(weights_of(GLM).backbone())


@pytest.mark.parametrize(
    ("context", "a", "b", "c", "d"),
    [
        (4096, 1.04, 1.03, 1.03, 1.03),
        (131_072, 1.61, 1.55, 1.50, 1.52),
        (524_288, 2.44, 2.36, 2.28, 2.36),
        (MILLION, 2.88, 2.81, 2.74, 2.87),
    ],
)
def test_what_sharing_saves_under_each_counting(context, a, b, c, d):
    ratios = {counting.name: round(counting.ratio, 2) for counting in sharing_ratios(GLM, context)}
    assert ratios == {"A": a, "B": b, "C": c, "D": d}


def test_operations_at_a_million_tokens():
    ours = token_flops(GLM, MILLION)
    assert [round(x / 1e9, 1) for x in (ours.linear, ours.core, ours.indexer, ours.total)] == [
        80.6,
        22.2,
        181.8,
        284.6,
    ]
    assert round(token_flops(every_layer_indexed(GLM), MILLION).total / 1e9, 1) == 779.2
    assert round(token_flops(GLM, MILLION, form="expanded").core / 1e9, 1) == 10.5


def test_drafting_with_one_indexer_pass():
    drafting = draft_flops(GLM, MILLION, steps=7)
    assert round(drafting.indexer_every_step / drafting.indexer_once, 2) == 2.62


def test_a_model_without_sharing_saves_nothing():
    ratios = sharing_ratios(every_layer_indexed(GLM), MILLION)
    assert [counting.ratio for counting in ratios] == [1.0] * 4


@given(st.integers(1, 300), st.integers(1, 300))
def test_mean_keys_are_the_mean_over_the_prompt(context, top_k):
    seen = [keys_seen(t, top_k, averaged=False) for t in range(1, context + 1)]
    keys, chosen = keys_seen(context, top_k, averaged=True)
    assert keys == pytest.approx(sum(k for k, _ in seen) / context)
    assert chosen == pytest.approx(sum(c for _, c in seen) / context)


def test_the_kv_cache_as_sglang_lays_it_out():
    bf16, fp8, _ = glm_kv_caches(GLM)
    assert (bf16.rows, fp8.rows) == (78 * 576 * 2, 78 * 656)
    assert bf16.index_keys == fp8.index_keys == 21 * 132


LAYOUTS = (
    LayoutConfig(data=2, expert=2, pipeline=4),
    LayoutConfig(data=2, tensor=4, sequence_parallel=True, expert=8, pipeline=8),
    LayoutConfig(context=4, expert=4, pipeline=4, virtual_pipeline=2),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_ranks_of_a_layout_hold_every_parameter(layout):
    """Weights that all ranks have, counted once, add up to the model."""
    assert layout_problem(GLM, layout) == ""
    ranks = rank_memories(GLM, layout, tokens=8192, dtype_bytes=2, recompute="full")
    backbone = weights_of(GLM).backbone()
    total = parameters(backbone)
    replicated = parameters(
        w for w in backbone if w.spread.name == "WHOLE"
    )  # on every tensor-parallel rank
    split = parameters(w for w in backbone if w.spread.name == "TENSOR")
    experts = total - replicated - split
    held = replicated + split // layout.tensor + experts // layout.expert
    assert sum(rank.parameters for rank in ranks) == held
    states = layout.data * layout.tensor * layout.context * sum(rank.optimizer for rank in ranks)
    assert states == pytest.approx(12 * (total + (layout.tensor - 1) * replicated), rel=1e-6)


def test_a_tied_embedding_is_held_twice_in_a_pipeline():
    shape = read_shape(QWEN)
    one, two = (
        sum(
            rank.parameters
            for rank in rank_memories(
                shape, LayoutConfig(pipeline=p), tokens=1, dtype_bytes=2, recompute="full"
            )
        )
        for p in (1, 2)
    )
    assert two - one == 151936 * 1024


def test_what_is_suggested_fits_and_half_of_it_does_not():
    found = smallest_fitting(GLM, 80 << 30, tokens=8192, dtype_bytes=2)
    assert found is not None
    assert layout_problem(GLM, found.layout) == ""
    assert found.fullest.total + RESERVED_BYTES <= 80 << 30
    assert found.layout.world_size * (80 << 30) >= 18 * parameters(weights_of(GLM).backbone())
    assert smallest_fitting(GLM, 1 << 30, tokens=8192, dtype_bytes=2) is None


def test_full_recomputation_keeps_less():
    layout = LAYOUTS[0]
    by = {
        recompute: rank_memories(GLM, layout, tokens=8192, dtype_bytes=2, recompute=recompute)[0]
        for recompute in ("none", "full")
    }
    assert by["full"].activations < by["none"].activations / 5
    same = dataclasses.replace(by["full"], activations=by["none"].activations)
    assert same == by["none"]
