"""Causal attention over paged keys and values, in few calls for a batch: similar sequences are padded to one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NEAR = 64
"""Lengths that differ by less are padded to one, however short they are."""
GATHERED_BYTES = 2 * 2**20
"""Of keys, for one call: what is gathered should stay near the caches."""
MASK_ELEMENTS = 4 * 2**20
"""Of one call: SDPA makes floats of them."""


def attend(
    query: Tensor,
    output: Tensor,
    keys: Tensor,
    values: Tensor,
    req_to_token: Tensor,
    pool: Tensor,
    kv_lens: Tensor,
    q_lens: Tensor,
    *,
    scale: float | None,
    window: int | None,
) -> None:
    """Causal attention of each sequence's last `q_lens` tokens over its `kv_lens` cached ones, into `output`.

    query: [tokens, heads, dim], sequence after sequence; output: [tokens, heads, value_dim].
    keys, values: [slots, kv_heads, dim]; `req_to_token[pool[n], :kv_lens[n]]`: the slots of sequence n.
    window: how far back a token sees, itself not counted.
    """
    starts = q_lens.cumsum(0) - q_lens
    row_bytes = keys[0].numel() * keys.element_size()
    for members in similar(q_lens.tolist(), kv_lens.tolist(), row_bytes):
        chosen = torch.tensor(members)
        kv, q = kv_lens[chosen].long(), q_lens[chosen].long()
        slots, present = _padded_slots(req_to_token, pool[chosen], kv)
        key, value = (_gathered(side, slots).to(query.dtype) for side in (keys, values))
        square = window is None and bool((q == kv).all()) and bool(present.all())
        for steps in _parts(int(q.max()), 0 if square else present.numel()):
            last = torch.minimum(steps, q[:, None] - 1)  # [batch, q]
            tokens = starts[chosen].long()[:, None] + last
            mask = None if square else _mask((kv - q)[:, None] + last, present, window)
            found = _sdpa(query[tokens].transpose(1, 2), key, value, mask, square, scale)
            # What is padded repeats its sequence's last token, and so writes the same.
            output[tokens] = found.transpose(1, 2)


def similar(q_lens: Sequence[int], kv_lens: Sequence[int], row_bytes: int) -> Iterator[list[int]]:
    """Sequences by number, in groups that pad to one shape without much more work than there is."""
    at_once = max(1, GATHERED_BYTES // row_bytes)
    group: list[int] = []
    shortest = longest = queries = 0
    for n in sorted(range(len(q_lens)), key=lambda n: (q_lens[n], kv_lens[n]), reverse=True):
        low, high = min(shortest, kv_lens[n]), max(longest, kv_lens[n])
        together = (len(group) + 1) * high <= at_once
        if group and together and _near(low, high) and _near(q_lens[n], queries):
            group.append(n)
            shortest, longest = low, high
            continue
        if group:
            yield group
        group, shortest, longest, queries = [n], kv_lens[n], kv_lens[n], q_lens[n]
    if group:
        yield group


def _near(low: int, high: int) -> bool:
    return high - low <= max(NEAR, high // 4)


def _padded_slots(req_to_token: Tensor, pool: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    """Slots and whether they are the sequence's own, [batch, kv].

    Padded with the first slot: what no sequence owns may hold a NaN, which no weight of zero takes away.
    """
    longest = int(kv.max())
    slots = req_to_token[pool, :longest]
    present = torch.arange(longest) < kv[:, None]
    return torch.where(present, slots, slots[:, :1]), present


def _gathered(pool: Tensor, slots: Tensor) -> Tensor:
    """[batch, kv_heads, kv, dim]. By `index_select`, which is twice as fast here as an index."""
    found = pool.index_select(0, slots.reshape(-1))
    return found.view(*slots.shape, *pool.shape[1:]).transpose(1, 2)


def _parts(queries: int, keys: int) -> Iterator[Tensor]:
    """Numbers of queries, [q], so that a mask of `keys` a query stays small. 0: there is no mask."""
    size = max(1, MASK_ELEMENTS // keys) if keys else queries
    for begin in range(0, queries, size):
        yield torch.arange(begin, min(begin + size, queries))


def _mask(positions: Tensor, present: Tensor, window: int | None) -> Tensor | None:
    """What a query at `positions` [batch, q] sees, [batch, 1, q, kv]; None: everything."""
    if positions.shape[1] == 1 and window is None and bool(present.all()):
        return None
    at = torch.arange(present.shape[1])
    seen = present[:, None, :] & (at <= positions[:, :, None])
    if window is not None:
        seen &= at >= positions[:, :, None] - window
    return seen[:, None]


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """q: [batch, heads, q, dim]; k, v: [batch, kv_heads, kv, dim]."""
    batch, heads, queries, dim = q.shape
    grouped = heads != k.shape[1]
    if grouped and queries == 1:
        # Heads that share keys as queries of one head: nothing is copied.
        together = q.reshape(batch, k.shape[1], -1, dim)
        out = scaled_dot_product_attention(together, k, v, attn_mask=mask, scale=scale)
        return out.reshape(batch, heads, 1, -1)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
