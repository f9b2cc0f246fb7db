"""Forward passes of the teachers that a rank holds: each reads the rows that are its own, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from trainer.ranks.shard import RowShard

Cut = Callable[[RowShard], tuple[MicroBatch, ...]]


class TeacherPasses:
    """`cut` makes micro-batches of a shard, as the rank's own passes do."""

    def __init__(
        self,
        model: torch.nn.Module,
        weights: TeacherWeights,
        cut: Cut,
        *,
        whole: bool,
        keeps: bool = False,
    ) -> None:
        """`whole`: a teacher reads all rows of a micro-batch, as where context parallelism splits it.

        `keeps`: a row's states are kept for the other updates of its step (one batch's states in the host's memory).
        Mini-batches are drawn anew every epoch, so that of D data-parallel ranks one in D rows comes back to its rank.
        """
        self._model, self._weights, self._cut, self._whole = model, weights, cut, whole
        # What context parallelism cuts from a row depends on the rows packed beside it.
        self._keeps = keeps and not whole
        self._kept: dict[bytes, Tensor | None] = {}
        self._kept_step = -1

    def logprobs(
        self, shard: RowShard, read: Callable[[RowShard], npt.NDArray[np.float32] | None]
    ) -> npt.NDArray[np.float32] | None:
        """[T of the shard] each row by its own teacher; `read` computes a shard with the weights in place."""
        column = np.zeros(len(shard.columns["token_ids"]), np.float32)
        teachers, answers = _teachers(shard), False
        with self._weights.borrow() as load:
            for index in self._present(teachers):
                load(index)
                mine = teachers == index
                found = read(self._own(shard, mine))
                if found is not None:
                    answers = True
                    tokens = np.repeat(mine, shard.lengths)
                    column[tokens] = found if not self._whole else found[tokens]
        return column if answers else None

    def with_states(
        self, wrapped: Wrapped, batches: Sequence[MicroBatch], shard: RowShard, *, step: int
    ) -> tuple[MicroBatch, ...]:
        """The micro-batches with their teachers' last hidden states, on the last pipeline stage."""
        if step != self._kept_step:
            self._kept, self._kept_step = {}, step
        keys = _keys(shard) if self._keeps else []
        states = dict(enumerate(self._kept.get(key) for key in keys))
        missing = np.ones(len(shard.lengths), bool)
        missing[: len(keys)] = [key not in self._kept for key in keys]
        teachers = _teachers(shard)
        # Virtual pipelining may have added empty micro-batches at the end.
        rows_of = [*shard.rows_per_micro_batch, *[0] * len(batches)]
        counts = [_asked_by_row(batch, rows) for batch, rows in zip(batches, rows_of, strict=False)]
        with self._weights.borrow() as load:
            for index in self._present(teachers[missing]):
                load(index)
                mine = missing & (teachers == index)
                own = self._own(shard, mine)
                outputs = forward_only(wrapped, list(self._for_hidden(own)), lambda x, _: x)
                read = np.ones_like(mine) if self._whole else mine
                states |= {row: found for row, found in _by_row(outputs, counts, read) if mine[row]}
        for row, key in enumerate(keys):
            found = states.get(row)
            self._kept[key] = None if found is None else found.cpu()
        if not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            return tuple(batches)
        return self._joined(batches, counts, states, teachers)

    def _for_hidden(self, shard: RowShard) -> Iterator[MicroBatch]:
        for batch in self._cut(shard):
            batch.packed.wants_hidden = True
            yield batch

    def _present(self, teachers: npt.NDArray[np.int32]) -> list[int]:
        """Those of any data-parallel rank: experts' collectives run over all of them. Collective."""
        present = torch.zeros(len(self._weights), device=self._device())
        found = np.unique(teachers[teachers >= 0])
        present[torch.from_numpy(found.astype(np.int64)).to(present.device)] = 1.0
        dist.all_reduce(
            present, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group()
        )
        return [int(i) for i in present.nonzero().flatten()]

    def _own(self, shard: RowShard, mine: npt.NDArray[np.bool_]) -> RowShard:
        """These rows in the same micro-batches; all of them where a teacher reads whole ones."""
        if self._whole:
            return shard
        ends = np.cumsum(shard.rows_per_micro_batch)[:-1]
        counts = tuple(int(part.sum()) for part in np.split(mine, ends))
        tokens = np.repeat(mine, shard.lengths)
        columns = {name: column[tokens] for name, column in shard.columns.items()}
        return RowShard(shard.lengths[mine], counts, columns)

    def _joined(
        self,
        batches: Sequence[MicroBatch],
        counts: Sequence[npt.NDArray[np.int64]],
        states: Mapping[int, Tensor | None],
        teachers: npt.NDArray[np.int32],
    ) -> tuple[MicroBatch, ...]:
        heads = {int(i): self._weights.head(int(i)) for i in np.unique(teachers[teachers >= 0])}
        device, joined, first = self._device(), [], 0
        for batch, asked in zip(batches, counts, strict=True):
            found = [states[first + int(row)] for row in np.flatnonzero(asked)]
            first += len(asked)
            pieces = [piece.to(device) for piece in found if piece is not None]
            if pieces:
                indices = batch.fields["teacher_index"].long()
                of_teacher = TeacherStates(torch.cat(pieces), indices, heads)
                batch = replace(batch, teacher=of_teacher)
            joined.append(batch)
        return tuple(joined)

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def _teachers(shard: RowShard) -> npt.NDArray[np.int32]:
    """[N] the teacher of each row, -1 for one without tokens."""
    filled = shard.lengths > 0
    starts = np.cumsum(shard.lengths) - shard.lengths
    teachers = np.full(len(shard.lengths), -1, np.int32)
    teachers[filled] = shard.columns["teacher_index"][starts[filled]]
    return teachers


def _keys(shard: RowShard) -> list[bytes]:
    """[N] by what a row's states depend on: its tokens, which of them are asked for, its teacher."""
    columns = [shard.columns[name] for name in ("token_ids", "loss_mask", "teacher_index")]
    ends = np.cumsum(shard.lengths)
    keys = []
    for start, end in zip(ends - shard.lengths, ends, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for column in columns:
            digest.update(np.ascontiguousarray(column[start:end]).tobytes())
        keys.append(digest.digest())
    return keys


def _asked_by_row(batch: MicroBatch, rows: int) -> npt.NDArray[np.int64]:
    """[rows] how many tokens of each row this rank answers for."""
    traces = batch.traces[: len(batch.asked)].cpu().numpy()
    return np.bincount(traces, minlength=rows)


def _by_row(
    outputs: Sequence[Tensor],
    counts: Sequence[npt.NDArray[np.int64]],
    read: npt.NDArray[np.bool_],
) -> Iterator[tuple[int, Tensor]]:
    """Each row that was read, and its part of its micro-batch's output; nothing before the last stage."""
    first = 0
    for output, asked in zip(outputs, counts, strict=bool(outputs)):
        own = read[first : first + len(asked)]
        sizes = asked[own].tolist()
        pieces = torch.split(output[: sum(sizes)], sizes) if sizes else ()
        yield from zip((first + np.flatnonzero(own)).tolist(), pieces, strict=True)
        first += len(asked)
