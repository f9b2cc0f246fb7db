"""The work of a packed row, by the model's own formulas: not quadratic where attention is sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlframe.model_costs.family import token_flops
from rlframe.model_shapes.family import ModelShape, has_definition, read_shape

POINTS_AN_OCTAVE = 8


@dataclass(frozen=True, slots=True)
class RowCosts:
    """FLOPs of a forward pass, exact at some lengths and linear in between."""

    lengths: npt.NDArray[np.float64]
    flops: npt.NDArray[np.float64]

    @classmethod
    def of(cls, shape: ModelShape, *, longest: int) -> RowCosts:
        """For rows of 1 to `longest` tokens."""
        octaves = max(1, int(np.ceil(np.log2(max(longest, 2)))))
        lengths = np.unique(
            np.round(2.0 ** (np.arange(octaves * POINTS_AN_OCTAVE + 1) / POINTS_AN_OCTAVE))
        )
        flops = [n * token_flops(shape, int(n), averaged=True).total for n in lengths]
        return cls(lengths, np.array(flops))

    def __call__(self, lengths: Sequence[int]) -> list[float]:
        """One cost a row."""
        found: list[float] = np.interp(lengths, self.lengths, self.flops).tolist()
        return found


def row_costs(
    hf_config: Mapping[str, Any], *, longest: int
) -> Callable[[Sequence[int]], Sequence[float]]:
    """By the model's formulas; by tokens alone for a model of which none are known here."""
    if has_definition(hf_config):
        return RowCosts.of(read_shape(hf_config), longest=longest)
    return lambda lengths: [float(length) for length in lengths]
