"""Where a batch's queries and keys lie: computed once a forward pass, used by every layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's new tokens, in the batch."""

    sequence: int
    start: int
    count: int
    length: int
    """Of the whole sequence, the new tokens included."""

    @property
    def queries(self) -> slice:
        return slice(self.start, self.start + self.count)

    @property
    def first_position(self) -> int:
        return self.length - self.count


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """`slots[s, p]` is the KV pool's row of position p of sequence s; beyond its length anything."""

    slots: Tensor  # [sequences, longest]
    lengths: Tensor  # [sequences]
    counts: tuple[int, ...]
    """New tokens of each sequence: one each while decoding."""

    @property
    def longest(self) -> int:
        return self.slots.shape[1]

    @property
    def one_each(self) -> bool:
        return all(count == 1 for count in self.counts)

    def spans(self) -> Iterator[Span]:
        start = 0
        for sequence, (count, length) in enumerate(
            zip(self.counts, self.lengths.tolist(), strict=True)
        ):
            yield Span(sequence, start, count, length)
            start += count


def layout_of(forward_batch: Any, req_to_token: Tensor) -> BatchLayout:
    """Of SGLang's ForwardBatch (0.5.20)."""
    lengths = forward_batch.seq_lens
    if forward_batch.forward_mode.is_decode_or_idle():
        counts = (1,) * len(lengths)
    else:
        counts = tuple(int(n) for n in forward_batch.extend_seq_lens.tolist())
    longest = int(lengths.max()) if len(lengths) else 0
    slots = req_to_token[forward_batch.req_pool_indices, :longest].long()
    return BatchLayout(torch.as_tensor(slots), lengths.long(), counts)
