"""The order of training tasks where there is a fixed set of them: every one once an epoch, each epoch in its own order."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


class Epochs:
    """A function of seed and index alone, so that a resumed run meets the same tasks."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._make_order)

    def row(self, index: int, *, count: int) -> tuple[int, int]:
        """Of task `index`: its epoch, and which of `count` rows it is."""
        epoch, position = divmod(index, count)
        return epoch, int(self._order(epoch, count)[position])

    def _make_order(self, epoch: int, count: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(count)
