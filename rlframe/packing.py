"""Packing: which rows go into which micro-batch of which data-parallel rank.

A micro-batch is one packed sequence of at most the cap's tokens, never more. Their number is the least
that the tokens allow and that every rank has as many of, if the rows can be put there (one more a rank
until they can). Each row goes, costliest first, to the micro-batch with the least work so far that has
room. Micro-batches of like work are then computed at the same time, one a rank, and within such a step
the costliest goes to the rank that has done least: ranks wait for each other at every step (in
collectives of experts, or of gradients at the end), and no one has to.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Sequence

from rlframe.types import BatchPlan


def plan(
    lengths: Sequence[int],
    *,
    data_parallel: int,
    max_tokens: int,
    costs: Sequence[float] | None = None,
    multiple_of: int = 1,
    context: int = 1,
) -> BatchPlan:
    """`lengths[i]` tokens of row i; `costs[i]` its work (default: its length).

    `multiple_of`: a packed sequence is padded up to a multiple of this, which the cap includes.
    `context`: over so many context-parallel ranks is each packed sequence split; `max_tokens` is what
    one of them holds. Raises ValueError naming the first row that is longer than the cap.
    """
    cap = max_tokens * context
    cap -= cap % multiple_of
    for row, length in enumerate(lengths):
        if length > cap:
            raise ValueError(
                f"row {row} has {length} tokens, a micro-batch holds {cap} "
                "(trainer.max_tokens_per_micro_batch): raise it, split it over "
                "trainer.*.layout.context, or lower rollout.max_context_tokens"
            )
    if not lengths:
        return BatchPlan(micro_batches=((),) * data_parallel, max_tokens=cap)
    work = [float(n) for n in lengths] if costs is None else [float(c) for c in costs]
    steps = aligned_bound(lengths, data_parallel=data_parallel, cap=cap)
    while (bins := _fill(lengths, work, steps * data_parallel, cap)) is None:
        steps += 1
    return BatchPlan(micro_batches=_deal(bins, work, data_parallel), max_tokens=cap)


def aligned_bound(lengths: Sequence[int], *, data_parallel: int, cap: int) -> int:
    """Micro-batches a rank, at least: the tokens over the cap, the same number on every rank."""
    return math.ceil(math.ceil(sum(lengths) / cap) / data_parallel)


def _fill(
    lengths: Sequence[int], work: Sequence[float], count: int, cap: int
) -> list[list[int]] | None:
    """The rows in `count` micro-batches; by work if that fits, else by tokens; None if neither does."""
    found = _least_loaded(lengths, work, count, cap)
    if found is None:
        found = _least_loaded(lengths, [float(n) for n in lengths], count, cap)
    return found if found is not None else _best_fit(lengths, count, cap)


def _least_loaded(
    lengths: Sequence[int], work: Sequence[float], count: int, cap: int
) -> list[list[int]] | None:
    """Costliest row first, each into the micro-batch with the least work that still holds it."""
    order = sorted(range(len(work)), key=lambda row: (-work[row], row))
    heap = [(0.0, index) for index in range(count)]
    room = [cap] * count
    bins: list[list[int]] = [[] for _ in range(count)]
    for row in order:
        length, passed = lengths[row], []
        while heap and room[heap[0][1]] < length:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        load, index = heap[0]
        bins[index].append(row)
        room[index] -= length
        heapq.heapreplace(heap, (load + work[row], index))
        for entry in passed:
            heapq.heappush(heap, entry)
    return bins


def _best_fit(lengths: Sequence[int], count: int, cap: int) -> list[list[int]] | None:
    """Longest row first, each into the fullest micro-batch that still holds it."""
    bins: list[list[int]] = [[] for _ in range(count)]
    room = [(cap, index) for index in range(count)]  # (free tokens, micro-batch), sorted
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], r)):
        at = bisect_left(room, (lengths[row], -1))
        if at == len(room):
            return None
        free, index = room.pop(at)
        bins[index].append(row)
        insort(room, (free - lengths[row], index))
    return bins


def _deal(
    bins: Sequence[Sequence[int]], work: Sequence[float], ranks: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Steps of like work, costliest first; in each, more work for the rank that has done less."""
    loads = [math.fsum(work[row] for row in rows) for rows in bins]
    order = sorted(range(len(bins)), key=lambda index: (-loads[index], index))
    done = [0.0] * ranks
    dealt: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    for start in range(0, len(order), ranks):
        step = order[start : start + ranks]
        idle_first = sorted(range(ranks), key=lambda rank: (done[rank], rank))
        for rank, index in zip(idle_first, step, strict=True):
            dealt[rank].append(tuple(sorted(bins[index])))
            done[rank] += loads[index]
    return tuple(tuple(rank) for rank in dealt)
