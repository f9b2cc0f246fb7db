"""No tensor of any size on the way grows as the square of the tokens: every one that torch makes is seen."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.glm_ranges import causal_ranges
from trainer.models.glm import windows
from trainer.models.glm.indexer_loss import IndexerLoss
from trainer.models.glm.key_selection import select_keys
from trainer.models.glm.sparse_attention import dense_attention, sparse_attention
from trainer.models.glm.tiles import Ids, Ranges

TOKENS, TOP_K, DIM = 6000, 16, 8


class Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):  # a view of little memory is little
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numbers = max(self.numbers, elements)
        return out


def test_the_largest_tensor_is_a_tile_or_linear_in_tokens() -> None:
    torch.manual_seed(0)
    first, last = causal_ranges([TOKENS])
    queries = torch.randn(TOKENS, 2, DIM, requires_grad=True)
    rows = torch.randn(TOKENS, DIM, requires_grad=True)
    index = torch.randn(TOKENS, 2, DIM), torch.randn(TOKENS, 2), torch.randn(TOKENS, DIM)
    with Largest() as largest:
        ids = select_keys(*index, first_rows=first, last_rows=last, top_k=TOP_K)
        out = sparse_attention(queries, rows, ids, scale=1.0, value_dim=4)
        out.sum().backward()  # type: ignore[no-untyped-call]
        dense = dense_attention(
            queries, rows, first_rows=first, last_rows=last, scale=1.0, value_dim=4
        )
        dense.sum().backward()  # type: ignore[no-untyped-call]
        for selection in (Ids(ids), Ranges(first, last)):
            loss = IndexerLoss(*index, selection=selection, token_weights=torch.ones(TOKENS))
            loss.add(queries, rows, scale=1.0)
    tile = windows.MAX_TILE["cpu"]
    assert 16 * tile < TOKENS * TOKENS
    # A window's scores are one number a query and row, for a tile's worth of chunks at a time.
    assert largest.numbers <= max(2 * tile, TOKENS * 16 * 64)
