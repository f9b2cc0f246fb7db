"""An engine's chosen rows, from its answer to what a packed row's layers read."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from torch import Tensor

from rlframe.errors import RunError
from rlframe.model_shapes.glm import GlmShape
from tests.trainer.glm_ranges import causal_ranges
from tests.trainer.tiny_glm import TINY_GLM
from trainer.models.glm.engine_ids import decode, given_ids
from trainer.models.glm.key_selection import select_keys

SHAPE = GlmShape.from_hf(TINY_GLM)
OWNERS = [0, 1, 2, 6]


def index(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(tokens, 4, 8), torch.randn(tokens, 4), torch.randn(tokens, 8)


def test_captures_of_sequences_are_the_choices_of_their_packed_row() -> None:
    torch.manual_seed(0)
    lengths = [30, 1, 12]
    by_layer = {layer: index(sum(lengths)) for layer in range(SHAPE.layers)}
    captures = []
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        first, last = causal_ranges([length])
        ids = [
            select_keys(*(x[own] for x in i), first_rows=first, last_rows=last, top_k=6)
            for i in by_layer.values()
        ]
        answer = torch.stack(ids, dim=1)[:-1].numpy().tobytes()
        captures.append(decode(base64.b64encode(answer).decode(), SHAPE))
        start += length
    rows = torch.arange(44)[::2]
    given = given_ids(captures, SHAPE, rows=rows, total=44)
    assert sorted(given) == OWNERS
    first, last = causal_ranges([*lengths, 1])
    for layer, ids in given.items():
        queries, weights, keys = (torch.cat((x, x[:1])) for x in by_layer[layer])
        whole = select_keys(
            queries, weights, keys, first_rows=first, last_rows=last, top_k=SHAPE.index_top_k
        )
        for end in (29, 30, 42, 43):
            whole[end] = torch.tensor([end, -1, -1, -1, -1, -1])
        assert torch.equal(ids, whole[rows])


def test_what_is_not_this_models_is_said() -> None:
    seven = base64.b64encode(np.zeros(7, np.int32).tobytes()).decode()
    with pytest.raises(RunError, match="7 row numbers, which are not 9 layers of 6 a token"):
        decode(seven, SHAPE)
    slots = np.full((3, SHAPE.layers, SHAPE.index_top_k), 900, np.int32)
    with pytest.raises(RunError, match="sequence 0: the engine chose a row after the token"):
        given_ids([slots], SHAPE, rows=torch.arange(4), total=4)
