"""Which tokens of a packed row a context-parallel rank has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ContextRank:
    """Rank `rank` of `size`, which has two of the row's 2 * size equal pieces, one from either end.

    So that each rank has as many (query, key) pairs to score as any other in one long sequence.
    Example: of 8 tokens, rank 0 of 2 has 0, 1, 6, 7 and rank 1 has 2, 3, 4, 5.
    """

    rank: int = 0
    size: int = 1

    @property
    def parts(self) -> int:
        """What the row's length must divide by."""
        return 1 if self.size == 1 else 2 * self.size

    def rows(self, total: int) -> npt.NDArray[np.int64]:
        """[total / size] ascending: this rank's tokens of a row of `total`."""
        if self.size == 1:
            return np.arange(total)
        pieces = np.arange(total).reshape(self.parts, -1)
        return np.concatenate((pieces[self.rank], pieces[-1 - self.rank]))

    def pieces(self, total: int) -> tuple[tuple[int, int], ...]:
        """Where each piece of `rows(total)` begins and ends, ascending."""
        if self.size == 1:
            return ((0, total),)
        length, last = total // self.parts, self.parts - 1 - self.rank
        return tuple((k * length, (k + 1) * length) for k in (self.rank, last))

    def order(self, total: int) -> npt.NDArray[np.int64]:
        """[total]: where each token of the row stands when all ranks' tokens are put end to end."""
        ends = [ContextRank(rank, self.size).rows(total) for rank in range(self.size)]
        return np.argsort(np.concatenate(ends))


ALONE = ContextRank()
