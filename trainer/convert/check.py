"""`rlframe convert --check`: whether a checkpoint is what its config says, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from trainer.convert.sources import HfSource
from trainer.convert.stream import NUMBERS_AT_ONCE
from trainer.models.fp8_blocks import BLOCK
from trainer.models.hf_files import layer_words
from trainer.models.hf_names import LM_HEAD, VALUE_HEAD, Size
from trainer.models.model_names import tensor_shapes, why_not


def name_problems(source: HfSource) -> list[str]:
    """Every tensor that is missing, of another shape, or without a place, a line each.

    Raises UserError for a config that contradicts itself, or of a family that is not known here.
    """
    shape = source.shape
    role = "critic" if VALUE_HEAD in source.checkpoint.shapes else "policy"
    expected = tensor_shapes(shape, role=role)
    # transformers saves the head of tied embeddings, or not.
    unused = frozenset({LM_HEAD}) if LM_HEAD not in expected else frozenset[str]()
    return source.checkpoint.problems(
        expected, unused=unused, why_not=lambda name: why_not(name, shape)
    )


def value_problems(source: HfSource, advance: Callable[[int], None]) -> Iterator[str]:
    """Reads everything. `advance` is told how many numbers were looked at."""
    for name, shape in source.checkpoint.shapes.items():
        bad = _not_finite(source, name, shape, advance)
        if bad:
            file = source.checkpoint.file_of(name)
            yield f"{file}: tensor '{name}'{layer_words(name)} has {bad:,} values that are not finite."


def count_numbers(source: HfSource) -> int:
    return sum(torch.Size(shape).numel() for shape in source.checkpoint.shapes.values())


def _not_finite(source: HfSource, name: str, shape: Size, advance: Callable[[int], None]) -> int:
    count = shape[0] if shape else 1
    columns = max(1, torch.Size(shape).numel() // max(1, count))
    at_once = max(BLOCK, NUMBERS_AT_ONCE // columns // BLOCK * BLOCK)
    bad = 0
    for first in range(0, count, at_once):
        part = source.read(name, slice(first, min(first + at_once, count)))
        bad += part.numel() - int(part.isfinite().sum())
        advance(part.numel())
    return bad
