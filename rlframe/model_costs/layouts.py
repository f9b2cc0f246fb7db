"""Layouts that hold a model: the fewest ranks of a given memory, found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from rlframe.model_costs.training_memory import RankMemory, rank_memories
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm_layout import check_layout

RESERVED_BYTES = 6 << 30
"""Of a device: CUDA context, NCCL's buffers, kernels' workspace, fragmentation."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_WORLD_SIZE = 4096
MAX_STAGES = 32
A_NODE = 8
"""Tensor-parallel neighbours talk all the time: they stay on one host."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """A layout, and its fullest rank."""

    layout: LayoutConfig
    fullest: RankMemory


def fullest_rank(
    shape: ModelShape, layout: LayoutConfig, *, tokens: int, dtype_bytes: int
) -> RankMemory:
    """With full recomputation."""
    return max(
        rank_memories(shape, layout, tokens=tokens, dtype_bytes=dtype_bytes, recompute="full"),
        key=lambda memory: memory.total,
    )


def smallest_fitting(
    shape: ModelShape, device_bytes: int, *, tokens: int, dtype_bytes: int
) -> Fitting | None:
    """Fewest ranks; among those the least splitting of tensors, then of tokens, then of stages."""
    for layout in sorted(_candidates(shape), key=_preference):
        fullest = fullest_rank(shape, layout, tokens=tokens, dtype_bytes=dtype_bytes)
        if fullest.total + RESERVED_BYTES <= device_bytes:
            return Fitting(layout, fullest)
    return None


def layout_problem(shape: ModelShape, layout: LayoutConfig) -> str:
    """Why the layout cannot hold the model; empty if it can."""
    try:
        if isinstance(shape, DenseShape):
            shape.check_layout(layout, "policy")
        else:
            check_layout(shape, layout, key="trainer.policy.layout")
    except UserError as error:
        return str(error)
    return ""


def _preference(layout: LayoutConfig) -> tuple[int, ...]:
    return (
        layout.world_size,
        layout.tensor,
        layout.context,
        layout.pipeline,
        -layout.expert,
    )


def _candidates(shape: ModelShape) -> Iterator[LayoutConfig]:
    """Powers of two; experts are spread as far as the ranks of a stage allow."""
    stages = [size for size in SIZES if size <= min(shape.layers, MAX_STAGES)]
    tensors = [size for size in SIZES if size <= A_NODE]
    for pipeline, tensor, context, data in itertools.product(stages, tensors, tensors, SIZES):
        a_stage = data * tensor * context
        layout = LayoutConfig(
            data=data,
            tensor=tensor,
            pipeline=pipeline,
            context=context,
            expert=1 if isinstance(shape, DenseShape) else min(a_stage, shape.experts),
            sequence_parallel=tensor > 1,
        )
        if layout.world_size <= MAX_WORLD_SIZE and not layout_problem(shape, layout):
            yield layout
