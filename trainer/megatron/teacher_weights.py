"""Teachers of the policy's architecture, their weights in the CPU's memory of the policy's own ranks.

    teachers = TeacherWeights(model, paths, seed=0)      # before the model is wrapped
    with teachers.borrow() as load:
        for index in ...:
            load(index)
            ...                                          # forward passes of that teacher

The policy's weights come back to the bit. The same layout splits all of them, so a swap moves no tensor between
ranks; a rank's host needs the memory of its parts of all teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.models.hf_bridge import load_hf
from trainer.models.language_model import model_chunks


class TeacherWeights:
    def __init__(self, model: torch.nn.Module, paths: Sequence[str], *, seed: int) -> None:
        """UserError for a checkpoint that is not of the model's architecture, naming file and tensor."""
        self._model = model
        self._live = [*model.parameters(), *model.buffers()]
        own = self._copies()
        self._kept: list[list[Tensor]] = []
        for path in paths:
            load_hf(model, path, seed=seed)
            self._kept.append(self._copies())
        self._put(own)

    def __len__(self) -> int:
        return len(self._kept)

    def head(self, index: int) -> Tensor:
        """[W, hidden] this rank's rows of that teacher's output layer; on the last pipeline stage."""
        chunk = model_chunks(self._model)[-1]
        weight = chunk.output_weight()
        position = next(i for i, tensor in enumerate(self._live) if tensor is weight)
        start, end = chunk.vocab_range
        return self._kept[index][position][: end - start]

    @contextmanager
    def borrow(self) -> Iterator[Callable[[int], None]]:
        """Yields what puts a teacher's weights into the model; also where the block raises, it ends as it began."""
        own: list[Tensor] = []

        def load(index: int) -> None:
            if not own:
                own.extend(self._copies())
            self._put(self._kept[index])

        try:
            yield load
        finally:
            if own:
                self._put(own)

    def _copies(self) -> list[Tensor]:
        return [tensor.detach().to("cpu", copy=True) for tensor in self._live]

    @torch.no_grad()
    def _put(self, tensors: Sequence[Tensor]) -> None:
        for live, tensor in zip(self._live, tensors, strict=True):
            live.copy_(tensor)
