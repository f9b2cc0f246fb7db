"""The ids that sparse attention chose in one micro-batch, in one part of a rank's pipeline stage.

A layer that owns an indexer (a *source*) puts its ids here, the layers after it that share them read
them, and all read them again when activation recomputation replays them: ids are never chosen twice, so
near-ties cannot fall differently the second time. They are kept on the micro-batch, so micro-batches in
flight (1F1B) do not see each other's, and are dropped after the last use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


class SharedIds:
    def __init__(self, users: Mapping[int, frozenset[int]]) -> None:
        """`users`: per source, every reader: layers (the source among them), and the next pipeline part."""
        self._users = users
        self._ids: dict[int, Tensor] = {}
        self._read: defaultdict[int, set[int]] = defaultdict(set)
        self._replays: defaultdict[int, set[int]] = defaultdict(set)

    def put(self, source: int, ids: Tensor) -> None:  # [T, k] int32
        self._ids[source] = ids

    def get(self, source: int) -> Tensor | None:
        return self._ids.get(source)

    def used(self, source: int, reader: int, *, comes_again: bool) -> None:
        """`comes_again`: this was a forward pass whose backward pass will replay the reader."""
        self._read[source].add(reader)
        (self._replays[source].add if comes_again else self._replays[source].discard)(reader)
        if self._read[source] >= self._users[source] and not self._replays[source]:
            self._ids.pop(source, None)

    def __len__(self) -> int:
        """How many sources' ids are held."""
        return len(self._ids)
