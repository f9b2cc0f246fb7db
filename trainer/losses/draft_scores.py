"""How well a draft model's distributions q meet the target's p, from logits that may be split over the vocabulary.

Legend: N positions, K draft steps, V vocabulary, W this rank's columns of it, p target, q draft.

The acceptance identity (Bebop, arXiv 2606.12370, eq. 2 and 8): a token drawn from q and accepted with
probability min(1, p/q) is accepted with  alpha = sum_v min(p_v, q_v) = 1 - TV(p, q).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.losses.split_vocabulary import Split, log_softmax

KEPT_BYTES = 1 << 28
"""Logits of all steps and positions together that are kept for the backward pass rather than made again."""

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden] -> logits [n, W]."""


@dataclass(frozen=True, slots=True)
class DraftScores:
    """Of K steps at N positions, each [K, N]; step 1 is row 0."""

    overlap: Tensor  # alpha = sum_v min(p, q): a drawn draft is accepted with this probability
    divergence: Tensor  # KL(p || q), nats
    label_logprobs: Tensor  # log q of the data's token
    top_overlap: Tensor  # p of q's most likely token; no gradient: "target-only" acceptance

    @property
    def steps(self) -> int:
        return len(self.overlap)


def complete_positions(cu_seqlens: Tensor, *, steps: int, total: int) -> Tensor:
    """[N] int64 positions i of a packed row of `total` tokens whose K labels all lie in i's document.

    Step k at i is given token i+k and predicts token i+k+1; so i + steps + 1 must be in the document.
    The shifted columns of a packed row hold another document's tokens at the others.
    """
    starts = cu_seqlens.long()
    lengths = starts.diff()
    ends = torch.repeat_interleave(starts[1:], lengths, output_size=total)
    index = torch.arange(total, device=cu_seqlens.device)
    return torch.nonzero(index + steps + 1 < ends).squeeze(1)


def draft_scores(
    drafts: Tensor,
    targets: Tensor,
    token_ids: Tensor,
    positions: Tensor,
    *,
    head: Head,
    target_head: Head | None = None,
    temperature: float = 1.0,
    chunk: int = 256,
    first_column: int = 0,
    group: dist.ProcessGroup | None = None,
) -> DraftScores:
    """Scores of `drafts` [K, T, hidden] against the target, teacher-forced, at `positions` [N].

    `drafts[k-1, i]` is h^k_i, which predicts token i+k+1; its target is `targets[i+k]` (T, hidden after
    the model's last norm), detached. `positions` are from `complete_positions`. `head` carries gradients
    to the drafts and to its own weights; `target_head` (default: `head`) runs without. Logits exist
    for `chunk` positions at a time, going forward and (made again) going back, so that memory beside the
    inputs is K * chunk * W numbers however long the row is; small ones (`KEPT_BYTES`) are kept. `group` holds the vocabulary's columns, this
    rank's beginning at token id `first_column`; every rank of it returns the same numbers.
    """
    steps = len(drafts)
    split = Split(first_column, group)
    with torch.no_grad():
        width = head(drafts[0, :1]).shape[-1]

    def one_chunk(drafts: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        after = at + torch.arange(1, steps + 1, device=at.device)[:, None]  # [K, n] position i+k
        with torch.no_grad():
            needed, inverse = torch.unique(after, return_inverse=True)
            log_p = log_softmax((target_head or head)(targets[needed]), temperature, split)
            p = log_p.exp()
            own_terms = torch.where(p > 0, p * log_p, 0.0).sum(
                -1
            )  # minus the entropy, of W columns
        rows = inverse.flatten()
        logits = head(drafts[:, at].flatten(0, 1))  # [K * n, W]
        scores: tuple[Tensor, ...] = _Compare.apply(  # type: ignore[no-untyped-call]
            logits, p[rows], own_terms[rows], token_ids[after + 1].flatten(), temperature, split
        )
        return tuple(x.view(steps, len(at)) for x in scores)

    kept = steps * len(positions) * width * drafts.element_size() <= KEPT_BYTES
    parts = []
    for at in torch.split(positions, chunk) or (positions,):
        if kept:
            parts.append(one_chunk(drafts, at))
        else:
            parts.append(
                checkpoint(one_chunk, drafts, at, use_reentrant=False, preserve_rng_state=False)
            )
    return DraftScores(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))


class _Compare(torch.autograd.Function):
    """overlap, KL(p || q), log q(label), p(argmax q), each [n]; gradients to the draft's logits.

    With S = sum_v q_v 1[q_v <= p_v]:  d overlap / d z_j = q_j (1[q_j <= p_j] - S)   (Bebop eq. 11);
    d KL / d z_j = q_j - p_j;  d log q_y / d z_j = 1[j = y] - q_j.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        p: Tensor,
        own_terms: Tensor,
        labels: Tensor,
        temperature: float,
        split: Split,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_q = log_softmax(logits, temperature, split)
        q = log_q.exp()
        local = labels - split.first
        here = (local >= 0) & (local < logits.shape[1])
        local = local.clamp(0, logits.shape[1] - 1)
        sums = torch.stack(
            [
                torch.minimum(p, q).sum(-1),
                own_terms - torch.linalg.vecdot(p, log_q),
                log_q.gather(1, local[:, None]).squeeze(1).where(here, 0.0),
                torch.linalg.vecdot(q, (q <= p).to(q.dtype)),
            ]
        )
        overlap, divergence, logprobs, share = split.reduce(sums)
        top, top_id = log_q.max(-1)
        best = split.reduce(top.clone(), dist.ReduceOp.MAX)
        accepted = p.gather(1, top_id[:, None]).squeeze(1).where(top == best, 0.0)
        accepted = split.reduce(accepted, dist.ReduceOp.MAX)
        ctx.save_for_backward(p, q, local, here, share)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.mark_non_differentiable(accepted)
        ctx.set_materialize_grads(False)
        return overlap, divergence, logprobs, accepted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        p, q, local, here, share = ctx.saved_tensors
        by_overlap, by_divergence, by_logprob, _ = grads
        slope = torch.zeros_like(share)  # of q, in all
        grad: Tensor | None = None
        if by_overlap is not None:
            slope = slope - by_overlap * share
            grad = torch.where(q <= p, q, 0.0).mul_(by_overlap[:, None])
        if by_divergence is not None:
            slope = slope + by_divergence
            grad = p * -by_divergence[:, None] + (0.0 if grad is None else grad)
        if by_logprob is not None:
            slope = slope - by_logprob
        grad = q * slope[:, None] if grad is None else grad.addcmul_(q, slope[:, None])
        if by_logprob is not None:
            grad.scatter_add_(1, local[:, None], by_logprob.where(here, 0.0)[:, None])
        return ((grad / ctx.temperature).to(ctx.dtype), *[None] * 5)
