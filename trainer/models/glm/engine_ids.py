"""Replaying the rows that an engine's indexers chose, so that training attends to what sampling did.

SGLang (0.5.20, CUDA, `--enable-return-indexer-topk`) answers a request with `meta_info.indexer_topk`: for
every token but the last one, which it never computes with, and for every layer, the positions in the
sequence. Here they become `PackedBatch.given_ids`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlframe.errors import RunError
from rlframe.model_shapes.glm import GlmShape

Capture = npt.NDArray[np.int32]
"""[tokens - 1, layers, top_k] positions of one sequence; negative: none."""


def decode(text: str, shape: GlmShape) -> Capture:
    """`meta_info.indexer_topk` of one request. Raises RunError if it is not of this model."""
    numbers: Any = np.frombuffer(base64.b64decode(text), np.int32)
    per_token = shape.layers * shape.index_top_k
    if len(numbers) % per_token:
        raise RunError(
            f"the engine gave {len(numbers)} row numbers, which are not {shape.layers} layers of "
            f"{shape.index_top_k} a token: it serves another model."
        )
    capture: Capture = numbers.reshape(-1, shape.layers, shape.index_top_k)
    return capture


def given_ids(
    captures: Sequence[Capture], shape: GlmShape, *, rows: Tensor, total: int
) -> dict[int, Tensor]:
    """[T, top_k] int32 for each layer that owns an indexer, T = the `rows` that this rank has.

    `captures` are those of a packed row's sequences, in order; `total` is the row's length with padding. A
    token without a capture (the last of its sequence, padding) attends to itself.
    Raises RunError for a position beyond its own token: then they are no positions.
    """
    owners = [layer for layer, owns in enumerate(shape.indexer_types) if owns]
    ids = np.full((total, len(owners), shape.index_top_k), -1, np.int32)
    ids[:, :, 0] = np.arange(total, dtype=np.int32)[:, None]
    start = 0
    for number, capture in enumerate(captures):
        chosen = capture[:, owners]
        end = start + len(chosen)
        if (chosen > np.arange(len(chosen))[:, None, None]).any():
            raise RunError(
                f"sequence {number}: the engine chose a row after the token that reads it."
            )
        ids[start:end] = np.where(chosen < 0, -1, chosen + start)
        start = end + 1
    own = torch.from_numpy(ids).to(rows.device)[rows]
    return {layer: own[:, place].contiguous() for place, layer in enumerate(owners)}
