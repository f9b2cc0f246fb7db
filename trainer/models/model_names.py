"""Every tensor of a model, or of one pipeline chunk of it, whatever its family."""

from __future__ import annotations

import re

from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.pipeline import Chunk, whole
from trainer.models.dense_names import dense_layer_entries
from trainer.models.glm.names import glm_layer_entries, mtp_entries
from trainer.models.hf_names import EMBEDDING, LM_HEAD, VALUE_HEAD, Cut, Entry, Size


def chunk_entries(
    shape: ModelShape,
    chunk: Chunk,
    *,
    role: str,
    expert_ranks: int = 1,
    expert_rank: int | None = None,
) -> tuple[Entry, ...]:
    """The parameters and buffers of one pipeline chunk, in the model's order.

    `expert_ranks`: over how many expert-parallel ranks experts are spread; with `expert_rank`, only what
    that rank has.
    """
    vocabulary = (shape.vocab_size, shape.hidden_size)
    entries: list[Entry] = []
    if chunk.is_first:
        name = "embedding.word_embeddings.weight"
        entries.append(Entry(name, (EMBEDDING,), (vocabulary,), Cut.VOCABULARY))
    for local, layer in enumerate(chunk.layers):
        prefix = f"decoder.layers.{local}."
        if isinstance(shape, GlmShape):
            entries += glm_layer_entries(
                shape,
                prefix=prefix,
                layer=layer,
                expert_ranks=expert_ranks,
                expert_rank=expert_rank,
            )
        else:
            entries += dense_layer_entries(shape, prefix=prefix, layer=layer)
    if chunk.is_last:
        entries += _last_entries(shape, role=role, alone=chunk.is_first)
        if isinstance(shape, GlmShape) and shape.mtp_layers and role == "policy":
            entries += mtp_entries(shape, expert_ranks=expert_ranks, expert_rank=expert_rank)
    return tuple(entries)


def _last_entries(shape: ModelShape, *, role: str, alone: bool) -> list[Entry]:
    hidden, vocabulary = shape.hidden_size, (shape.vocab_size, shape.hidden_size)
    name, head = "decoder.final_layernorm.weight", "output_layer.weight"
    entries = [Entry(name, ("model.norm.weight",), ((hidden,),), Cut.WHOLE)]
    if role == "critic":
        size = (shape.value_outputs, hidden)
        entries.append(Entry(head, (VALUE_HEAD,), (size,), Cut.WHOLE))
    elif not shape.tied_embeddings:
        entries.append(Entry(head, (LM_HEAD,), (vocabulary,), Cut.VOCABULARY))
    elif not alone:
        entries.append(Entry(head, (EMBEDDING,), (vocabulary,), Cut.VOCABULARY, exported=False))
    return entries


def model_entries(shape: ModelShape, *, role: str) -> tuple[Entry, ...]:
    """Of the whole model on one rank."""
    return chunk_entries(shape, whole(shape.layers), role=role)


def tensor_shapes(shape: ModelShape, *, role: str) -> dict[str, Size]:
    """Every Hugging Face tensor of the whole model, with its shape."""
    return {
        name: size
        for entry in model_entries(shape, role=role)
        for name, size in zip(entry.tensors, entry.shapes, strict=True)
    }


def why_not(name: str, shape: ModelShape) -> str:
    """Why a tensor that looks like ours has no place in the model; empty where nothing is known."""
    layer = re.match(r"model\.layers\.(\d+)\.self_attn\.indexer\.", name)
    if layer is None or not isinstance(shape, GlmShape):
        return ""
    number = int(layer[1])
    if number >= shape.layers or shape.indexer_types[number]:
        return ""
    source = shape.source_layers[number]
    return f" Layer {number} has no indexer: it shares the ids of layer {source} (indexer_types)."
