"""Random forests of traces as rows with credit: what long, compacted, branching trajectories give a trainer.

Rows begin alike (a prompt, siblings, sub-agents, compacted contexts), hold turns of the policy between
tokens of tools, turns in which nothing was sampled, and may have one token, no action, or be a prefix or a
copy of another row, in which the same tokens train once more with other credit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlframe.types import BatchPlan, TrainRow
from tests.trainer.tiny import TINY

SHAPES = ("root", "branch", "branch", "branch", "copy", "one_token")


def random_forest(seed: int, *, rows: int = 9, longest: int = 60) -> list[TrainRow]:
    """`rows` rows of at most `longest` tokens; at least one token trains."""
    rng = np.random.default_rng(seed)
    made = [_row(rng, _turns(rng, longest), first_trains=1)]
    while len(made) < rows:
        shape = rng.choice(SHAPES)
        parent = made[rng.integers(len(made))].token_ids
        match shape:
            case "root":
                ids = _turns(rng, longest)
            case "branch":
                kept = parent[: rng.integers(1, len(parent) + 1)]
                ids = np.concatenate((kept, _turns(rng, longest)))[:longest]
            case "copy":
                ids = parent[: rng.integers(1, len(parent) + 1)] if rng.random() < 0.5 else parent
            case _:
                ids = _ids(rng, 1)
        made.append(_row(rng, ids, first_trains=int(rng.integers(0, len(ids) + 1))))
    order = rng.permutation(rows)
    return [made[i] for i in order]


def random_plan(
    seed: int, rows: int, *, data: int, at_most: int = 4, split: bool = True
) -> BatchPlan:
    """Each row anywhere; some micro-batches may be empty."""
    rng = np.random.default_rng([seed, rows, data])
    count = int(rng.integers(1, at_most + 1)) if split else 1
    place = rng.integers(0, data * count, rows)
    boxes = [tuple(rng.permutation(np.flatnonzero(place == box))) for box in range(data * count)]
    return BatchPlan(
        tuple(tuple(boxes[d * count : (d + 1) * count]) for d in range(data)), max_tokens=10_000
    )


def _ids(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    return rng.integers(0, TINY["vocab_size"], count, dtype=np.int32)


def _turns(rng: np.random.Generator, longest: int) -> np.ndarray[Any, Any]:
    return _ids(rng, int(rng.integers(1, longest + 1)))


def _row(rng: np.random.Generator, ids: np.ndarray[Any, Any], *, first_trains: int) -> TrainRow:
    """From `first_trains` on, sampled turns and tool results of 0 to 8 tokens follow one another."""
    length = len(ids)
    mask = np.zeros(length, bool)
    at = max(first_trains, 1)
    while at < length:
        sampled = int(rng.integers(0, 9))
        mask[at : at + sampled] = True
        at += sampled + int(rng.integers(0, 9))

    def column(centre: float, scale: float) -> Any:
        return np.where(mask, rng.normal(centre, scale, length), 0.0).astype(np.float32)

    return TrainRow(
        token_ids=ids,
        loss_mask=mask,
        advantages=column(0.0, 1.0),
        returns=column(0.5, 1.0),
        old_logprobs=column(-4.2, 0.3),
        old_values=column(0.0, 0.1),
        rollout_logprobs=column(-4.2, 0.3),
        loss_weights=np.where(mask, rng.uniform(0.0, 2.0, length), 0.0).astype(np.float32),
    )
