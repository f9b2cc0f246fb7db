"""Causal attention within each sequence of a packed row, as Megatron's `core_attention`.

16-bit on CUDA: torch's varlen (flash) attention on the row as it is. Otherwise: sequences of similar
length side by side in blocks that are padded on the right, inside the attention only. Causal attention
never looks right, so the padding needs no mask.

Where a sequence goes on from one that others share, or is split over context-parallel ranks, its keys are
put together from where they are (`trainer.models.runs`), and attention is causal from the end of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from trainer.models.blocks import Block
from trainer.models.packed import PackedBatch
from trainer.models.runs import Runs


class PackedAttention(torch.nn.Module):
    """softmax(rope(q) rope(k)^T / sqrt(head_dim)) v, causal, per sequence; rotary embedding included.

    Rotating here, and not in Megatron's Attention, computes sines and cosines once per micro-batch
    instead of twice per layer, at each token's position in its own sequence.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        rope_theta: float,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._context_group = None if pg_collection is None else pg_collection.cp
        self.rope_theta = rope_theta
        self.scale = config.softmax_scale

    def forward(
        self,
        query: Tensor,  # [T, 1, heads, head_dim]
        key: Tensor,  # [T, 1, kv_heads, head_dim]
        value: Tensor,  # [T, 1, kv_heads, head_dim]
        attention_mask: None,
        *,
        packed_seq_params: PackedBatch,
        **_: Any,
    ) -> Tensor:  # [T, 1, heads * head_dim]
        packed = packed_seq_params
        q, k, v = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        cos, sin = packed.rotation(q.shape[-1], self.rope_theta, q.dtype)
        q, k = (_Rotate.apply(x, cos, sin) for x in (q, k))  # type: ignore[no-untyped-call]
        if packed.context.size > 1:
            k, v = (self._of_all_ranks(x, packed) for x in (k, v))
        out = causal_attention(q, k, v, packed, scale=self.scale)
        return out.reshape(out.shape[0], 1, -1)

    def _of_all_ranks(self, own: Tensor, packed: PackedBatch) -> Tensor:
        """[T, ...] of this context-parallel rank -> [K, ...] of all, in the order of the packed row."""
        gathered = gather_from_sequence_parallel_region(own.contiguous(), group=self._context_group)
        return gathered.index_select(0, packed.order)  # type: ignore[no-any-return]


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedBatch, *, scale: float | None
) -> Tensor:
    """[T, heads, dim] of queries, [K, ...] keys and values (of fewer heads, where queries share them) -> [T,
    heads, dim of values]. K: tokens of the whole packed row. `scale` None: dim^-1/2."""
    has_kernel = q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)
    if has_kernel and q.shape[-1] == v.shape[-1]:
        return _varlen(q, k, v, packed, scale)
    if packed.runs is not None:
        return _by_runs(q, k, v, packed.runs, scale)
    return _by_blocks(q, k, v, packed, scale)


def _varlen(q: Tensor, k: Tensor, v: Tensor, packed: PackedBatch, scale: float | None) -> Tensor:
    """Flash attention aligns fewer queries than keys at the end, since its version 2.1."""
    from torch.nn.attention.varlen import varlen_attn

    ends = key_ends = packed.cu_seqlens
    longest = longest_keys = packed.max_length
    if packed.runs is not None:
        ends, key_ends, keys, longest, longest_keys = packed.runs.cumulative
        k, v = k.index_select(0, keys), v.index_select(0, keys)
    out = varlen_attn(
        q,
        k,
        v,
        ends,
        key_ends,
        longest,
        longest_keys,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)  # a pair only where auxiliary outputs are asked for
    return out


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, packed: PackedBatch, scale: float | None) -> Tensor:
    blocks = packed.blocks
    outs = []
    for qb, kb, vb in zip(*(_to_blocks(x, blocks) for x in (q, k, v)), strict=True):
        out = F.scaled_dot_product_attention(
            qb.transpose(1, 2),
            kb.transpose(1, 2),
            vb.transpose(1, 2),
            is_causal=True,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outs.append(out.transpose(1, 2))
    return _from_blocks(outs, blocks)


def _by_runs(q: Tensor, k: Tensor, v: Tensor, runs: Runs, scale: float | None) -> Tensor:
    """Keys stand in as many slots as there are runs that see them: their gradients add up."""
    blocks = tuple(block.queries for block in runs.blocks)
    outs = []
    for qb, block in zip(_to_blocks(q, blocks), runs.blocks, strict=True):
        size = (block.queries.rows, -1)
        kb, vb = (x.index_select(0, block.keys).view(*size, *x.shape[1:]) for x in (k, v))
        out = F.scaled_dot_product_attention(
            qb.transpose(1, 2),
            kb.transpose(1, 2),
            vb.transpose(1, 2),
            attn_mask=block.mask,
            is_causal=block.mask is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outs.append(out.transpose(1, 2))
    return _from_blocks(outs, blocks)


class _Rotate(torch.autograd.Function):
    """x cos + (-x2, x1) sin; the gradient is rotated back. `sin` has its sign in the first half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _swap_halves(x).mul_(sin).addcmul_(x, cos)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (g,) = grads
        return _swap_halves(g * sin).addcmul_(g, cos), None, None


def _swap_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1)


def _to_blocks(x: Tensor, blocks: tuple[Block, ...]) -> tuple[Tensor, ...]:
    """[T, heads, head_dim] -> [rows, length, heads, head_dim] of each block."""
    if _is_plain(blocks):
        return (x.view(blocks[0].rows, blocks[0].length, *x.shape[1:]),)
    split: tuple[Tensor, ...] = _ToBlocks.apply(x, blocks)  # type: ignore[no-untyped-call]
    return split


def _from_blocks(xs: Sequence[Tensor], blocks: tuple[Block, ...]) -> Tensor:
    """The inverse of `_to_blocks`; what stands in padding slots is dropped."""
    if _is_plain(blocks):
        return xs[0].reshape(-1, *xs[0].shape[2:])
    joined: Tensor = _FromBlocks.apply(blocks, *xs)  # type: ignore[no-untyped-call]
    return joined


def _is_plain(blocks: tuple[Block, ...]) -> bool:
    """All sequences are equally long: the packed row already is the block."""
    return len(blocks) == 1 and len(blocks[0].tokens) == len(blocks[0].gather)


class _ToBlocks(torch.autograd.Function):
    """Each token stands in one slot, so its gradient is read there, and padding's is dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: tuple[Block, ...]) -> tuple[Tensor, ...]:
        ctx.blocks = blocks
        return tuple(
            x.index_select(0, b.gather).view(b.rows, b.length, *x.shape[1:]) for b in blocks
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _scatter(grads, ctx.blocks), None


class _FromBlocks(torch.autograd.Function):
    """The gradient of padding slots is zero: their queries must not reach real keys."""

    @staticmethod
    def forward(ctx: Any, blocks: tuple[Block, ...], *xs: Tensor) -> Tensor:
        ctx.blocks = blocks
        return _scatter(xs, blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        by_block = []
        for block in ctx.blocks:
            padded = g.new_zeros(len(block.gather), *g.shape[1:])
            padded.index_copy_(0, block.slots, g.index_select(0, block.tokens))
            by_block.append(padded.view(block.rows, block.length, *g.shape[1:]))
        return None, *by_block


def _scatter(xs: Sequence[Tensor], blocks: tuple[Block, ...]) -> Tensor:
    tokens = sum(len(block.tokens) for block in blocks)
    packed = xs[0].new_empty(tokens, *xs[0].shape[2:])
    for x, block in zip(xs, blocks, strict=True):
        packed.index_copy_(0, block.tokens, x.flatten(0, 1).index_select(0, block.slots))
    return packed
