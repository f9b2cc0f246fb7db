"""What a rank does, whatever library does it: the contract between the Ray actor and a backend.

Every call is collective: all ranks of a role make the same calls in the same order. Only the rank that
`answers` for its data-parallel rank gets results. `RoleTrainer` says what each call means.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rlframe.types import Float32Array, WeightManifest
from trainer.ranks.shard import RowShard
from trainer.ranks.spec import RankInfo


@runtime_checkable
class HoldsTeachers(Protocol):
    """A backend whose ranks hold the weights of teachers (`RankSpec.teachers`)."""

    def teacher_logprobs(self, shard: RowShard) -> Float32Array | None:
        """As `logprobs`, each row by the teacher of its `teacher_index`, at temperature 1."""
        ...


class RankTraining(Protocol):
    """One rank's model in training, after it has joined the others and has its weights."""

    def info(self) -> RankInfo: ...

    def logprobs(self, shard: RowShard) -> Float32Array | None:
        """[T of the shard] log p of each token under `loss_mask`, 0 elsewhere."""
        ...

    def reference_logprobs(self, shard: RowShard) -> Float32Array | None:
        """As `logprobs`, of the weights that the role began with (`RankSpec.keeps_reference`)."""
        ...

    def values(self, shard: RowShard) -> Float32Array | None:
        """[T of the shard] V(state before the token), 0 at each row's first token."""
        ...

    def update(self, shard: RowShard, *, step: int, actions: int) -> dict[str, float] | None:
        """One optimizer step; `actions` of all data-parallel ranks together normalise the loss."""
        ...

    def export(self, version: int, directory: str) -> WeightManifest | None: ...

    def share(self, version: int) -> WeightManifest | None: ...

    def export_hf(self, directory: str) -> None: ...

    def save(self, directory: str, step: int) -> None: ...

    def load(self, directory: str) -> int: ...

    def close(self) -> None:
        """Leaves the process groups, so that no peer sees a broken connection."""
        ...
