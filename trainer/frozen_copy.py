"""The weights that a model began with, kept in the CPU's memory: the reference of a KL penalty.

    reference = FrozenCopy(tensors_of(model))      # before training, and before a checkpoint is loaded
    with reference.in_place():
        ...                                        # forward passes of the first weights

A resumed run builds its model from the same files (or the same seed), so it has the same reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class FrozenCopy:
    """One copy; another tensor's worth of memory while it is swapped in."""

    def __init__(self, live: Iterable[Tensor]) -> None:
        """`live`: everything that the model computes with on this rank, parameters and buffers."""
        self._live = list(live)
        self._kept = [tensor.detach().to("cpu", copy=True) for tensor in self._live]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The live weights come back to the bit, also where the block raises."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """The one against the other; a second swap undoes it."""
        for live, kept in zip(self._live, self._kept, strict=True):
            moved: Tensor = live.detach().to("cpu", copy=True)
            live.copy_(kept)
            kept.copy_(moved)
