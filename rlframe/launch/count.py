"""`rlframe plan --count`: the second count, on the real model. Loads torch and Megatron."""

from __future__ import annotations

from collections.abc import Iterator

from rlframe.errors import UserError
from rlframe.model_costs.family import token_flops, weights_of
from rlframe.model_costs.weights import parameters
from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.glm import GlmShape


def counted_beside_formula(
    shape: ModelShape, *, context: int
) -> Iterator[tuple[str, float, float]]:
    """What, by formula, counted: parameters without the MTP layer, and operations of one token."""
    if not isinstance(shape, GlmShape):
        raise UserError("--count counts GLM-5's modules; a dense model's plan has formulas only")
    from trainer.models.glm.meta_count import count_alone

    formula = token_flops(shape, context)
    counted = count_alone(shape, context=context)
    yield "parameters", parameters(weights_of(shape).backbone()), counted.parameters
    yield "linear", formula.linear, counted.linear
    yield "core", formula.core, counted.core
    yield "indexer", formula.indexer, counted.indexer
