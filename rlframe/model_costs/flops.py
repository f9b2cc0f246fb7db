"""Floating-point operations of one token's forward pass, by part; one multiply-add is two of them.

`linear`: every matrix that multiplies the token. `core`: queries against the keys that attention reads, and
values by their weights. `indexer`: scoring all keys before, to choose those (sparse attention only). Norms,
softmax, rotations, the top-k and the router's choice are left out; together they are far below 1%.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rlframe.model_costs.glm_weights import glm_weights, indexer_weights
from rlframe.model_costs.weights import active
from rlframe.model_shapes.glm import GlmShape

Form = Literal["absorbed", "expanded"]
"""How latent attention is computed: on the cached rows, shared by all heads; or on keys and values that
are made of them for each head. The first reads less memory, the second does about half the operations."""


@dataclass(frozen=True, slots=True)
class TokenFlops:
    """Forward operations of one token."""

    linear: float
    core: float
    indexer: float = 0.0

    @property
    def total(self) -> float:
        return self.linear + self.core + self.indexer


def glm_token_flops(
    shape: GlmShape, context: int, *, form: Form = "absorbed", averaged: bool = False
) -> TokenFlops:
    """Of the token at position `context`; `averaged`: of a mean token of a prompt of that length."""
    keys, chosen = keys_seen(context, shape.index_top_k, averaged=averaged)
    a_key = 2 * shape.heads * _widths(shape)[form]
    return TokenFlops(
        linear=2.0 * active(glm_weights(shape).backbone()),
        core=a_key * chosen * shape.layers,
        indexer=indexer_flops(shape) * keys * sum(shape.indexer_types),
    )


def indexer_flops(shape: GlmShape) -> int:
    """Of one indexer for one key: a dot product a head, and the weighted sum over heads."""
    return 2 * shape.index_heads * shape.index_dim + 2 * shape.index_heads


def keys_seen(context: int, top_k: int, *, averaged: bool) -> tuple[float, float]:
    """Keys before a token, and those of them that sparse attention reads (itself among both).

    `averaged` over the tokens of a prompt of `context` tokens: the means of t and of min(t, top_k).
    """
    if not averaged:
        return float(context), float(min(context, top_k))
    few = min(context, top_k)
    return (context + 1) / 2, (few * (few + 1) / 2 + (context - few) * top_k) / context


def every_layer_indexed(shape: GlmShape) -> GlmShape:
    """The same model without sharing (GLM-5.1's schedule)."""
    return replace(shape, indexer_types=(True,) * shape.layers)


@dataclass(frozen=True, slots=True)
class Counting:
    """One way to state what sharing saves: every-layer indexers over the model's schedule."""

    name: str
    counts: str
    ratio: float


def sharing_ratios(
    shape: GlmShape, context: int, *, averaged: bool = False
) -> tuple[Counting, ...]:
    """What "N times fewer operations a token" may mean. C alone counts all that is computed.

    GLM-5.2's announcement says 2.9 at 1M without a formula; A and D round to it, B and C do not.
    """
    every = every_layer_indexed(shape)

    def ours(form: Form) -> TokenFlops:
        return glm_token_flops(shape, context, form=form, averaged=averaged)

    def theirs(form: Form) -> TokenFlops:
        return glm_token_flops(every, context, form=form, averaged=averaged)

    absorbed, absorbed_every = ours("absorbed"), theirs("absorbed")
    group = _largest_group(shape)
    ideal = absorbed_every.total - (1 - 1 / group) * (
        absorbed_every.indexer + 2.0 * shape.layers * active(indexer_weights(shape))
    )
    return (
        Counting(
            "A",
            "linear + indexer; core attention left out",
            (absorbed_every.linear + absorbed_every.indexer) / (absorbed.linear + absorbed.indexer),
        ),
        Counting(
            "B",
            "everything, core attention expanded",
            theirs("expanded").total / ours("expanded").total,
        ),
        Counting("C", "everything, core attention absorbed", absorbed_every.total / absorbed.total),
        Counting(
            "D",
            f"as C, but as if exactly one layer in {group} had an indexer",
            absorbed_every.total / ideal,
        ),
    )


@dataclass(frozen=True, slots=True)
class DraftFlops:
    """One drafting round of the MTP layer, its steps together."""

    indexer_every_step: float
    indexer_once: float


def draft_flops(shape: GlmShape, context: int, *, steps: int) -> DraftFlops:
    """Absorbed core attention; embeddings are looked up, the head is the target model's."""
    indexer = 2 * active(indexer_weights(shape)) + indexer_flops(shape) * context
    core = 2 * shape.heads * _widths(shape)["absorbed"] * min(context, shape.index_top_k)
    model = glm_weights(shape)
    rest = 2 * (active(model.mtp) + active(model.head)) - 2 * active(indexer_weights(shape)) + core
    return DraftFlops(steps * (rest + indexer), steps * rest + indexer)


def _widths(shape: GlmShape) -> dict[Form, int]:
    """Multiply-adds of one head for one key that is read."""
    return {
        "absorbed": shape.row_dim + shape.latent_rank,
        "expanded": shape.head_dim + shape.value_dim,
    }


def _largest_group(shape: GlmShape) -> int:
    """Layers that the busiest indexer serves."""
    sources = shape.source_layers
    return max(sources.count(layer) for layer in set(sources))
