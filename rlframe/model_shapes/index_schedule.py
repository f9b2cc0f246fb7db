"""Which layers of a sparse-attention model own an indexer, and whose ids the others reuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlframe.errors import UserError
from rlframe.model_shapes.fields import count, positive_integer

FULL, SHARED = "full", "shared"


def indexer_types(hf_config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Per layer, whether it owns an indexer: `indexer_types`, else `index_topk_pattern`, else freq and offset.

    transformers 5.23 computes the last as: layer l owns one iff max(l - offset + 1, 0) % freq == 0, with
    offset 2 where none is given (configuration_glm_moe_dsa.py); with neither, every layer does (GLM-5.1).
    Raises UserError for a schedule of another length, with other words, or whose first layer is shared.
    """
    listed = hf_config.get("indexer_types")
    pattern = hf_config.get("index_topk_pattern")
    if listed is not None:
        types = _from_words("indexer_types", listed, {FULL: True, SHARED: False}, layers)
    elif pattern is not None:
        types = _from_words("index_topk_pattern", pattern, {"F": True, "S": False}, layers)
    else:
        frequency = positive_integer(hf_config, "index_topk_freq", 1)
        offset = count(hf_config, "index_skip_topk_offset", 2)
        types = tuple(max(layer - offset + 1, 0) % frequency == 0 for layer in range(layers))
    if not types[0]:
        raise UserError(
            "model config: layer 0 shares the ids of an earlier layer, but there is none; it must be "
            f"'{FULL}' in indexer_types."
        )
    return types


def source_layers(types: Sequence[bool]) -> tuple[int, ...]:
    """Per layer, the nearest layer at or before it that owns an indexer."""
    sources: list[int] = []
    for layer, full in enumerate(types):
        sources.append(layer if full else sources[-1])
    return tuple(sources)


def _from_words(
    key: str, given: Sequence[str], meaning: Mapping[str, bool], layers: int
) -> tuple[bool, ...]:
    if len(given) != layers:
        raise UserError(
            f"model config: {key} has {len(given)} entries for num_hidden_layers={layers}."
        )
    for layer, word in enumerate(given):
        if word not in meaning:
            raise UserError(
                f"model config: {key} says {word!r} for layer {layer}; allowed: {', '.join(meaning)}."
            )
    return tuple(meaning[word] for word in given)
