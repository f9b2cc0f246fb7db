"""Forward passes of the teachers that a rank holds: each reads the rows that are its own, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from trainer.distillation_loss import TeacherStates
from trainer.megatron.micro_batch import MicroBatch
from trainer.megatron.passes import Wrapped, forward_only
from trainer.megatron.teacher_weights import TeacherWeights
from trainer.models.language_model import model_chunks
from trainer.ranks.shard import RowShard

Cut = Callable[[RowShard], tuple[MicroBatch, ...]]


class TeacherPasses:
    """`cut` makes micro-batches of a shard, as the rank's own passes do."""

    def __init__(
        self, model: torch.nn.Module, weights: TeacherWeights, cut: Cut, *, whole: bool
    ) -> None:
        """`whole`: a teacher reads all rows of a micro-batch, as where context parallelism splits it."""
        self._model, self._weights, self._cut, self._whole = model, weights, cut, whole

    def logprobs(
        self, shard: RowShard, read: Callable[[RowShard], npt.NDArray[np.float32] | None]
    ) -> npt.NDArray[np.float32] | None:
        """[T of the shard] each row by its own teacher; `read` computes a shard with the weights in place."""
        column = np.zeros(len(shard.columns["token_ids"]), np.float32)
        answers = False
        with self._weights.borrow() as load:
            for index in self._present(shard):
                load(index)
                own, tokens = self._own(shard, index)
                found = read(own)
                if found is not None:
                    answers = True
                    column[tokens] = found if not self._whole else found[tokens]
        return column if answers else None

    def with_states(
        self, wrapped: Wrapped, batches: Sequence[MicroBatch], shard: RowShard
    ) -> tuple[MicroBatch, ...]:
        """The micro-batches with their teachers' last hidden states, on the last pipeline stage."""
        width = int(model_chunks(self._model)[-1].config.hidden_size)
        hidden: list[Tensor | None] = [None] * len(batches)
        heads: dict[int, Tensor] = {}
        with self._weights.borrow() as load:
            for index in self._present(shard):
                load(index)
                own, _ = self._own(shard, index)
                outputs = forward_only(wrapped, list(self._for_hidden(own)), lambda x, _: x)
                if not outputs:
                    continue
                heads[index] = self._weights.head(index)
                for place, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
                    if len(batch.asked) == 0:
                        continue
                    if hidden[place] is None:
                        hidden[place] = output.new_empty(len(batch.targets), width)
                    mine = batch.fields["teacher_index"] == index
                    target = hidden[place]
                    assert target is not None
                    target[mine] = output[mine] if self._whole else output[: int(mine.sum())]
        return tuple(
            batch
            if states is None
            else replace(
                batch,
                teacher=TeacherStates(states, batch.fields["teacher_index"].long(), heads),
            )
            for batch, states in zip(batches, hidden, strict=True)
        )

    def _for_hidden(self, shard: RowShard) -> Iterator[MicroBatch]:
        for batch in self._cut(shard):
            batch.packed.wants_hidden = True
            yield batch

    def _present(self, shard: RowShard) -> list[int]:
        """Teachers of any data-parallel rank's rows: experts' collectives run over all of them. Collective."""
        present = torch.zeros(len(self._weights), device=next(self._model.parameters()).device)
        found = np.unique(shard.columns["teacher_index"])
        present[torch.from_numpy(found.astype(np.int64)).to(present.device)] = 1.0
        dist.all_reduce(
            present, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group()
        )
        return [int(i) for i in present.nonzero().flatten()]

    def _own(self, shard: RowShard, index: int) -> tuple[RowShard, npt.NDArray[np.bool_]]:
        """The rows of one teacher in the same micro-batches, and which of the shard's tokens they are."""
        tokens: npt.NDArray[np.bool_] = shard.columns["teacher_index"] == index
        if self._whole:
            return shard, tokens
        starts = np.cumsum(shard.lengths) - shard.lengths
        chosen = np.array(
            [n > 0 and tokens[s] for s, n in zip(starts, shard.lengths, strict=True)], bool
        )
        counts, row = [], 0
        for rows in shard.rows_per_micro_batch:
            counts.append(int(chosen[row : row + rows].sum()))
            row += rows
        columns = {name: column[tokens] for name, column in shard.columns.items()}
        return RowShard(shard.lengths[chosen], tuple(counts), columns), tokens
