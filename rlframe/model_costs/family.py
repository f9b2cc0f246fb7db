"""The costs of a model of whichever family."""

from __future__ import annotations

from rlframe.model_costs.dense import dense_kv_caches, dense_token_flops, dense_weights
from rlframe.model_costs.flops import Form, TokenFlops, glm_token_flops
from rlframe.model_costs.glm_weights import glm_weights
from rlframe.model_costs.kv_cache import KvCache, glm_kv_caches
from rlframe.model_costs.weights import ModelWeights
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.family import ModelShape


def weights_of(shape: ModelShape) -> ModelWeights:
    return dense_weights(shape) if isinstance(shape, DenseShape) else glm_weights(shape)


def token_flops(
    shape: ModelShape, context: int, *, form: Form = "absorbed", averaged: bool = False
) -> TokenFlops:
    """`form` is of latent attention; a dense model has one only."""
    if isinstance(shape, DenseShape):
        return dense_token_flops(shape, context, averaged=averaged)
    return glm_token_flops(shape, context, form=form, averaged=averaged)


def kv_caches(shape: ModelShape) -> tuple[KvCache, ...]:
    return dense_kv_caches(shape) if isinstance(shape, DenseShape) else glm_kv_caches(shape)
