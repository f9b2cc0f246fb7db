"""A model as a list of weight tensors: parameters, operations and memory all follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Spread(Enum):
    """How tensor- and expert-parallel ranks hold a weight."""

    WHOLE = "every rank has it"
    TENSOR = "tensor-parallel ranks have a part each"
    EXPERT = "expert-parallel ranks have some of the copies each"


@dataclass(frozen=True, slots=True)
class Weights:
    """Equal weight tensors of one layer."""

    part: str
    """What they belong to: `attention`, `indexer`, ..."""
    rows: int
    columns: int = 1
    copies: int = 1
    used: int = 1
    """How many of the copies multiply one token; 0 for a vector or a table that is looked up."""
    spread: Spread = Spread.WHOLE

    @property
    def parameters(self) -> int:
        return self.rows * self.columns * self.copies

    @property
    def active(self) -> int:
        """Parameters that multiply one token: half the operations of its forward pass."""
        return self.rows * self.columns * self.used


def vector(part: str, size: int) -> Weights:
    """A norm's weight, a bias: stored, but no matrix product."""
    return Weights(part, size, used=0)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All weights of a model, where they stand."""

    embedding: tuple[Weights, ...]
    layers: tuple[tuple[Weights, ...], ...]
    head: tuple[Weights, ...]
    """The last norm, and the output matrix (used, but not stored, where embeddings are tied)."""
    mtp: tuple[Weights, ...] = ()
    """The multi-token-prediction layer: stored with the model, idle in an ordinary forward pass."""

    def backbone(self) -> tuple[Weights, ...]:
        """Everything but the MTP layer."""
        return (*self.embedding, *(w for layer in self.layers for w in layer), *self.head)


def parameters(weights: Iterable[Weights]) -> int:
    return sum(w.parameters for w in weights)


def active(weights: Iterable[Weights]) -> int:
    """Parameters that multiply one token."""
    return sum(w.active for w in weights)


def by_part(weights: Iterable[Weights]) -> dict[str, tuple[int, int]]:
    """Parameters and active parameters of each part, in the order in which parts appear."""
    sums: dict[str, tuple[int, int]] = {}
    for w in weights:
        stored, used = sums.get(w.part, (0, 0))
        sums[w.part] = (stored + w.parameters, used + w.active)
    return sums
