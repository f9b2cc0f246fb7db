"""Memory of one training rank: weights, gradients, optimizer, activations, for any layout.

Adam with its state spread over the data-parallel ranks (Megatron's distributed optimizer), gradients in float32,
float32 master weights beside 16-bit ones. Experts are taken to be chosen evenly. Not in the sum: what the CUDA
context, NCCL and the allocator's fragments take, a few GiB together. The MTP layer is not trained with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlframe.config.schema import LayoutConfig
from rlframe.model_costs.activations import head_bytes, ids_bytes, input_bytes, layer_bytes
from rlframe.model_costs.family import weights_of
from rlframe.model_costs.weights import ModelWeights, Spread, Weights
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm_layout import glm_chunks
from rlframe.model_shapes.pipeline import Chunk, chunks_of

Recompute = Literal["none", "full"]
GRADIENT_BYTES, MOMENT_BYTES, MASTER_BYTES = 4, 8, 4


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes on a rank of pipeline stage `stage`."""

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def rank_memories(
    shape: ModelShape,
    layout: LayoutConfig,
    *,
    tokens: int,
    dtype_bytes: int,
    recompute: Recompute,
) -> tuple[RankMemory, ...]:
    """Of one rank of every pipeline stage. `tokens`: of a micro-batch, before context parallelism."""
    model, chunks = weights_of(shape), model_chunks(shape, layout)
    return tuple(
        _stage_memory(
            shape,
            layout,
            stage,
            weights=[
                w
                for chunk in chunks[stage :: layout.pipeline]
                for w in _chunk_weights(model, chunk, alone=len(chunks) == 1)
            ],
            activations=_activations(
                shape,
                layout,
                chunks,
                stage,
                tokens=tokens // layout.context,
                dtype_bytes=dtype_bytes,
                recompute=recompute,
            ),
            dtype_bytes=dtype_bytes,
        )
        for stage in range(layout.pipeline)
    )


def model_chunks(shape: ModelShape, layout: LayoutConfig) -> tuple[Chunk, ...]:
    """The pipeline's parts; chunk v * stages + s is the v-th part of stage s."""
    if isinstance(shape, DenseShape):
        return chunks_of([shape.layers // layout.pipeline] * layout.pipeline)
    return glm_chunks(shape, layout)


def _chunk_weights(model: ModelWeights, chunk: Chunk, *, alone: bool) -> Iterable[Weights]:
    if chunk.is_first:
        yield from model.embedding
    for layer in chunk.layers:
        yield from model.layers[layer]
    if chunk.is_last:
        yield from model.head
        if not alone and all(w.copies == 0 for w in model.head if w.part == "head"):
            yield from model.embedding  # tied: the last stage has a copy of its own


def _stage_memory(
    shape: ModelShape,
    layout: LayoutConfig,
    stage: int,
    *,
    weights: Sequence[Weights],
    activations: int,
    dtype_bytes: int,
) -> RankMemory:
    tensor = layout.tensor
    whole = sum(w.parameters for w in weights if w.spread is Spread.WHOLE)
    split = sum(w.parameters for w in weights if w.spread is Spread.TENSOR) // tensor
    experts = sum(w.parameters for w in weights if w.spread is Spread.EXPERT) // layout.expert
    replicas = layout.data * layout.context
    state = MOMENT_BYTES + (MASTER_BYTES if dtype_bytes < MASTER_BYTES else 0)
    sharded = (whole + split) / replicas + experts * layout.expert / (replicas * tensor)
    own = whole + split + experts
    return RankMemory(
        stage=stage,
        parameters=own,
        weights=own * dtype_bytes,
        gradients=own * GRADIENT_BYTES,
        optimizer=round(sharded * state),
        activations=activations,
    )


def _activations(
    shape: ModelShape,
    layout: LayoutConfig,
    chunks: Sequence[Chunk],
    stage: int,
    *,
    tokens: int,
    dtype_bytes: int,
    recompute: Recompute,
) -> int:
    """The most that is held at once: micro-batches in flight under 1F1B, and the head's logits."""
    own = chunks[stage :: layout.pipeline]
    layers = [layer for chunk in own for layer in chunk.layers]
    full = {
        layer: layer_bytes(shape, layer, layout=layout, dtype_bytes=dtype_bytes) for layer in layers
    }
    if recompute == "full":
        kept = len(layers) * input_bytes(shape, layout=layout, dtype_bytes=dtype_bytes)
        working = max(full.values(), default=0.0)
    else:
        kept, working = sum(full.values()), 0.0
    kept += ids_bytes(shape, layers)
    a_batch = kept * tokens * _in_flight(layout, stage)
    logits = head_bytes(shape, layout=layout, dtype_bytes=dtype_bytes) if own[-1].is_last else 0.0
    return round(a_batch + max(working, logits) * tokens)


def _in_flight(layout: LayoutConfig, stage: int) -> float:
    """Micro-batches whose activations a stage holds, at most; a virtual part counts as its share."""
    stages, parts = layout.pipeline, layout.virtual_pipeline
    if parts == 1:
        return stages - stage
    return ((stages - stage - 1) * 2 + (parts - 1) * stages + 1) / parts
