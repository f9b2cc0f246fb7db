"""GLM-5's sizes and indexer schedule, against the published numbers."""

from __future__ import annotations

import pytest

from rlframe.errors import UserError
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.index_schedule import indexer_types

TINY = {
    "model_type": "glm_moe_dsa",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
    "index_topk": 6,
    "index_head_dim": 16,
    "index_n_heads": 32,
}


def test_the_published_schedule_has_21_full_layers_of_78() -> None:
    types = indexer_types({"index_topk_freq": 4, "index_skip_topk_offset": 3}, 78)
    assert [n for n, full in enumerate(types) if full] == [0, 1, *range(2, 75, 4)]


def test_the_list_wins_over_the_pattern_and_the_pattern_over_the_frequency() -> None:
    every = {"index_topk_freq": 1}
    assert indexer_types({**every, "index_topk_pattern": "FSF"}, 3) == (True, False, True)
    both = {"index_topk_pattern": "FSF", "indexer_types": ["full", "shared", "shared"]}
    assert indexer_types(both, 3) == (True, False, False)


def test_without_a_schedule_every_layer_owns_an_indexer() -> None:
    assert GlmShape.from_hf(TINY).indexer_types == (True,) * 9


def test_a_shared_layer_uses_the_nearest_full_one_before_it() -> None:
    shape = GlmShape.from_hf({**TINY, "index_topk_freq": 4, "index_skip_topk_offset": 3})
    assert shape.source_layers == (0, 1, 2, 2, 2, 2, 6, 6, 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indexer_types": ["full"] * 8}, "8 entries for num_hidden_layers=9"),
        ({"indexer_types": ["full"] * 8 + ["none"]}, "'none' for layer 8"),
        ({"indexer_types": ["shared"] * 9}, "layer 0"),
        ({"n_group": 2}, "n_group=2"),
        ({"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({"q_lora_rank": None}, "q_lora_rank"),
        ({"mlp_layer_types": ["sparse"] * 8 + ["dense"]}, "mlp_layer_types"),
        ({"num_nextn_predict_layers": 3}, "num_nextn_predict_layers=3"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_what_cannot_be_expressed_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GlmShape.from_hf({**TINY, **change})
