"""Everything that `rlframe plan` says, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlframe.config.schema import LayoutConfig
from rlframe.model_costs.family import kv_caches, token_flops, weights_of
from rlframe.model_costs.flops import (
    Counting,
    DraftFlops,
    TokenFlops,
    draft_flops,
    every_layer_indexed,
    sharing_ratios,
)
from rlframe.model_costs.kv_cache import KvCache
from rlframe.model_costs.layouts import Fitting, smallest_fitting
from rlframe.model_costs.training_memory import RankMemory, rank_memories
from rlframe.model_costs.weights import active, by_part, parameters
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm import GlmShape

CONTEXTS = tuple(1 << power for power in (12, 15, 16, 17, 18, 19, 20))
DEVICES_GIB = (80, 141, 180)
DRAFT_STEPS = 7


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which layers own an indexer."""

    layers: int
    full: int


@dataclass(frozen=True, slots=True)
class AtContext:
    """One token's forward pass at one position."""

    context: int
    flops: TokenFlops
    expanded_core: float
    """Core attention's operations in the expanded form; `flops` has the absorbed one."""
    every_layer: TokenFlops | None
    """With an indexer in every layer; None where the model has that, or no indexer."""
    ratios: tuple[Counting, ...] = ()
    drafting: DraftFlops | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole of it. Sizes in bytes, operations of the forward pass of one token."""

    model_type: str
    parameters: int
    active: int
    parts: dict[str, tuple[int, int]]
    """Parameters and active parameters by part, without the MTP layer."""
    mtp_parameters: int
    schedule: Schedule | None
    averaged: bool
    by_context: tuple[AtContext, ...]
    kv: tuple[KvCache, ...]
    kv_every_layer: tuple[KvCache, ...]
    layout: LayoutConfig
    tokens: int
    """Of a micro-batch."""
    dtype_bytes: int
    memory: dict[str, RankMemory]
    """Of the fullest rank under the given layout, by recomputation."""
    fitting: dict[int, Fitting | None]
    """By GiB of a device, the fewest of them that hold the model in training."""


def make_plan(
    shape: ModelShape,
    *,
    layout: LayoutConfig,
    tokens: int,
    dtype_bytes: int,
    contexts: Sequence[int] | None = None,
    averaged: bool = False,
) -> Plan:
    """`layout` must be one that the model can have; `contexts` are within its positions."""
    model = weights_of(shape)
    sizes = {"tokens": tokens, "dtype_bytes": dtype_bytes}
    shares = isinstance(shape, GlmShape) and not all(shape.indexer_types)
    return Plan(
        model_type="qwen3" if isinstance(shape, DenseShape) else "glm_moe_dsa",
        parameters=parameters(model.backbone()) + parameters(model.mtp),
        active=active(model.backbone()),
        parts=by_part(model.backbone()),
        mtp_parameters=parameters(model.mtp),
        schedule=(
            Schedule(shape.layers, sum(shape.indexer_types))
            if isinstance(shape, GlmShape)
            else None
        ),
        averaged=averaged,
        by_context=tuple(
            _at(shape, context, averaged=averaged)
            for context in contexts or default_contexts(shape.max_positions)
        ),
        kv=kv_caches(shape),
        kv_every_layer=kv_caches(every_layer_indexed(shape)) if shares else (),  # type: ignore[arg-type]
        layout=layout,
        memory={
            recompute: max(
                rank_memories(shape, layout, recompute=recompute, **sizes),
                key=lambda rank: rank.total,
            )
            for recompute in ("none", "full")
        },
        fitting={gib: smallest_fitting(shape, gib << 30, **sizes) for gib in DEVICES_GIB},
        **sizes,
    )


def default_contexts(max_positions: int) -> tuple[int, ...]:
    """4K to 1M, as far as the model goes, and all that it can; of a small model its last octaves."""
    fitting = [context for context in CONTEXTS if context < max_positions]
    return (*(fitting or (max_positions // 4, max_positions // 2)), max_positions)


def _at(shape: ModelShape, context: int, *, averaged: bool) -> AtContext:
    flops = token_flops(shape, context, averaged=averaged)
    expanded = token_flops(shape, context, form="expanded", averaged=averaged).core
    if isinstance(shape, DenseShape) or all(shape.indexer_types):
        return AtContext(context, flops, expanded, every_layer=None)
    every = token_flops(every_layer_indexed(shape), context, averaged=averaged)
    return AtContext(
        context,
        flops,
        expanded,
        every_layer=every,
        ratios=sharing_ratios(shape, context, averaged=averaged),
        drafting=draft_flops(shape, context, steps=DRAFT_STEPS) if shape.mtp_layers else None,
    )
