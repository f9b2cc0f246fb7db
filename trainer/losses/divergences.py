"""Divergences between what a student and its teacher say next, exact or over a teacher's likeliest tokens.

With q the student's distribution, p the teacher's, both at one temperature:

    reverse_kl   KL(q || p)
    forward_kl   KL(p || q)
    jsd          b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q   (generalized Jensen-Shannon;
                 Agarwal et al., arXiv 2306.13649); b = 0 is KL(p || q), b = 1 is KL(q || p), as in TRL

All of them are sum_v f(q_v, p_v), and with g_v = df/dq_v the gradient of the logits is q_v (g_v - E_q g).

Legend: P positions, V vocabulary, W this rank's columns of it, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.losses.split_vocabulary import Split, log_normaliser, scaled

CHUNK_ELEMENTS = 1 << 20
"""Elements of what exists beside the logits at a time: a few of 4 MiB in float32."""
SMALLEST_REST = 1e-7
"""A teacher's mass outside its candidates, where float32 leaves none: 1 - sum is known to no better."""

TeacherLogits = Callable[[slice], Tensor]
"""Positions -> the teacher's logits [n, W], of the same columns as the student's."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which one, and at which temperature of both distributions."""

    kind: str
    beta: float = 0.5
    """Of `jsd`."""
    temperature: float = 1.0

    def plain(self) -> Divergence:
        """`jsd` at either end is a KL."""
        ends = {0.0: "forward_kl", 1.0: "reverse_kl"}
        if self.kind == "jsd" and self.beta in ends:
            return Divergence(ends[self.beta], temperature=self.temperature)
        return self

    def terms(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """f(q_v, p_v) elementwise; 0 where the student has no mass and log_q is -inf."""
        gone = log_q == -torch.inf
        log_q = log_q.masked_fill(gone, 0.0)
        q = log_q.exp().masked_fill(gone, 0.0)
        match self.kind:
            case "reverse_kl":
                return q * (log_q - log_p)
            case "forward_kl":
                return (log_p.exp() * (log_p - log_q)).masked_fill(gone, 0.0)
            case "jsd":
                log_m = self.log_mixture(log_q, log_p)
                p = log_p.exp()
                mixed = self.beta * p * (log_p - log_m) + (1.0 - self.beta) * q * (log_q - log_m)
                return mixed.masked_fill(gone, 0.0)
        raise ValueError(f"divergence '{self.kind}': reverse_kl, forward_kl or jsd")

    def log_mixture(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        own = torch.tensor([self.beta, 1.0 - self.beta], dtype=log_q.dtype, device=log_q.device)
        log_b, log_c = own.log()
        return torch.logaddexp(log_p + log_b, log_q + log_c)

    def slope_times_q(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """q_v g_v, up to a multiple of q_v, which no logit feels."""
        match self.kind:
            case "reverse_kl":
                return log_q.exp() * (log_q - log_p)
            case "forward_kl":
                return -log_p.exp()
            case "jsd":
                return (1.0 - self.beta) * log_q.exp() * (log_q - self.log_mixture(log_q, log_p))
        raise ValueError(f"divergence '{self.kind}': reverse_kl, forward_kl or jsd")


def full_divergence(
    logits: Tensor,
    teacher: TeacherLogits,
    divergence: Divergence,
    *,
    first_column: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """[P] over the whole vocabulary, from the student's logits [P, W]; differentiable in them alone.

    The teacher's logits exist for some positions at a time, made once going forward and once going back;
    so do all float32 copies. `group` holds the vocabulary's columns, this rank's beginning at token id
    `first_column`; every rank of it returns the same.
    """
    found: Tensor = _Full.apply(  # type: ignore[no-untyped-call]
        logits, teacher, divergence.plain(), Split(first_column, group)
    )
    return found


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: TeacherLogits, divergence: Divergence, split: Split
    ) -> Tensor:
        found, columns = [], []
        for part in _parts(logits, split):
            q = scaled(logits[part], divergence.temperature)
            p = scaled(teacher(part), divergence.temperature)
            norm_q, norm_p = log_normaliser(q, split), log_normaliser(p, split)
            q, p = q - norm_q[:, None], p - norm_p[:, None]
            sums = torch.stack(
                [divergence.terms(q, p).sum(-1), divergence.slope_times_q(q, p).sum(-1)]
            )
            value, slope = split.reduce(sums)
            found.append(value)
            columns.append(torch.stack([norm_q, norm_p, slope]))
        ctx.save_for_backward(logits, *columns)
        ctx.teacher, ctx.divergence, ctx.split = teacher, divergence, split
        return torch.cat(found) if found else logits.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, *columns = ctx.saved_tensors
        divergence, (upstream,) = ctx.divergence, grads
        grad = torch.empty_like(logits)
        for part, (norm_q, norm_p, slope) in zip(_parts(logits, ctx.split), columns, strict=True):
            q = scaled(logits[part], divergence.temperature) - norm_q[:, None]
            p = scaled(ctx.teacher(part), divergence.temperature) - norm_p[:, None]
            own = divergence.slope_times_q(q, p).sub_(q.exp_().mul_(slope[:, None]))
            grad[part] = own.mul_(upstream[part, None] / divergence.temperature)
        return grad, None, None, None


def candidate_divergence(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    divergence: Divergence,
    *,
    tail: str,
    first_column: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """[P] from the teacher's K likeliest tokens: `ids` [P, K] int64 and their `logprobs` [P, K], at temperature 1.

    What is known of the rest of the teacher's distribution is its sum. `tail` says what is made of it:

    bucket       all other tokens are one outcome of its own, on both sides: a lower bound of the divergence
                 (data processing), equal to it where K is the vocabulary; moves mass between candidates
                 and the rest. Only at temperature 1: a tempered rest can't be known
    renormalise  both distributions are of the candidates alone, divided by their sums (tempered first): what
                 mass the student has elsewhere is not felt
    """
    divergence = divergence.plain()
    log_q, log_rest = candidate_logprobs(
        logits, ids, temperature=divergence.temperature, first_column=first_column, group=group
    )
    log_p = logprobs.to(log_q.dtype)
    if tail == "renormalise":
        log_q = log_q - log_q.logsumexp(-1, keepdim=True)
        log_p = log_p / divergence.temperature
        log_p = log_p - log_p.logsumexp(-1, keepdim=True)
    elif tail == "bucket":
        if divergence.temperature != 1.0:
            raise ValueError("tail=bucket needs temperature 1")
        rest = (1.0 - log_p.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_REST)
        log_q = torch.cat([log_q, log_rest[:, None]], dim=-1)
        log_p = torch.cat([log_p, rest.log()], dim=-1)
    else:
        raise ValueError(f"tail '{tail}': bucket or renormalise")
    return divergence.terms(log_q, log_p).sum(-1)


def candidate_logprobs(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    first_column: int = 0,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """log q of each of `ids` [P, K] (different ones in a row), and [P] the log of what all others have together
    (-inf where there are no others). Differentiable in `logits` [P, W]."""
    found: tuple[Tensor, Tensor] = _Candidates.apply(  # type: ignore[no-untyped-call]
        logits, ids, temperature, Split(first_column, group)
    )
    return found


class _Candidates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, temperature: float, split: Split
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        chosen = torch.empty(ids.shape, dtype=dtype, device=logits.device)
        rest = torch.empty(len(ids), dtype=dtype, device=logits.device)
        norms = torch.empty_like(rest)
        for part in _parts(logits, split):
            z = scaled(logits[part], temperature)
            norms[part] = log_normaliser(z, split)
            log_q = z - norms[part, None]
            local, here = _local(ids[part], split, logits.shape[1])
            padded = torch.nn.functional.pad(log_q, (0, 1))
            chosen[part] = padded.gather(1, local).where(here, 0.0)
            q = padded.exp_().scatter_(1, local, 0.0)
            rest[part] = q[:, :-1].sum(-1)
        split.reduce(chosen)
        log_rest = split.reduce(rest).log()
        ctx.save_for_backward(logits, ids, norms, log_rest)
        ctx.temperature, ctx.split = temperature, split
        return chosen, log_rest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d log q_k / d z_v = 1[v = k] - q_v;  d log rest / d z_v = 1[v not among k] q_v / rest - q_v."""
        logits, ids, norms, log_rest = ctx.saved_tensors
        by_chosen, by_rest = grads
        by_rest = by_rest.where(log_rest > -torch.inf, 0.0)
        total = by_chosen.sum(-1) + by_rest
        share = (by_rest * (-log_rest).exp()).where(log_rest > -torch.inf, 0.0)
        grad = torch.empty_like(logits)
        for part in _parts(logits, ctx.split):
            log_q = scaled(logits[part], ctx.temperature) - norms[part, None]
            q = torch.nn.functional.pad(log_q.exp_(), (0, 1))
            local, here = _local(ids[part], ctx.split, logits.shape[1])
            own = q * (share - total)[part, None]
            at = by_chosen[part] - q.gather(1, local) * total[part, None]
            own.scatter_(1, local, at.where(here, 0.0))
            grad[part] = own[:, :-1].div_(ctx.temperature)
        return grad, None, None, None


def _local(ids: Tensor, split: Split, width: int) -> tuple[Tensor, Tensor]:
    """Columns of `ids` here, and which of them are here; the others point at a column behind the last."""
    local = ids - split.first
    here = (local >= 0) & (local < width)
    return local.where(here, width), here


def _parts(logits: Tensor, split: Split) -> Iterator[slice]:
    """As many positions at a time on every rank of the split, however many columns each has."""
    positions, width = logits.shape
    widest = split.reduce(torch.tensor([width], device=logits.device), dist.ReduceOp.MAX)
    size = max(1, CHUNK_ELEMENTS // max(int(widest), 1))
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))
