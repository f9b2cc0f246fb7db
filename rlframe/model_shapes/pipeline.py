"""Which layers each pipeline chunk has: a stage, or one of its parts with virtual pipelining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Chunk:
    """Layers [first, end) of the model.

    Chunk v * stages + s is the v-th part of stage s, so hidden states travel from chunk to chunk in order.
    """

    first: int
    end: int
    is_first: bool
    is_last: bool

    @property
    def layers(self) -> range:
        return range(self.first, self.end)


def chunks_of(sizes: Sequence[int]) -> tuple[Chunk, ...]:
    """Chunks of the given numbers of layers."""
    ends = list(accumulate(sizes))
    return tuple(
        Chunk(end - size, end, is_first=i == 0, is_last=i == len(sizes) - 1)
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )


def whole(layers: int) -> Chunk:
    """The one chunk of a model that is not split."""
    return Chunk(0, layers, is_first=True, is_last=True)


def most_even(layers: int, count: int, starts: Sequence[int]) -> tuple[int, ...] | None:
    """Sizes of `count` chunks that all begin at one of `starts`, the largest as small as possible.

    Among those the one whose squares sum to the least. None if there are too few starts. `starts` is
    ascending and begins with 0. O(count * len(starts)^2).
    """
    ends = [*starts[1:], layers]
    # end of what is split so far -> (largest, squares, sizes)
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for _ in range(count):
        longer: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for begin, (largest, squares, sizes) in best.items():
            for end in ends:
                if end > begin:
                    size = end - begin
                    candidate = (max(largest, size), squares + size * size, (*sizes, size))
                    longer[end] = min(longer.get(end, candidate), candidate)
        best = longer
    return best[layers][2] if layers in best else None
