"""Losses of multi-token prediction: cross entropy, total variation, end-to-end TV, and a hybrid for a cold start.

Each is a mean over the K steps, summed over the N positions and divided by the caller's `denominator`,
the number of positions of the whole global mini-batch: parts add up, as everywhere in `trainer.losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trainer.losses.draft_scores import DraftScores

HYBRID_DECAY = 3.0
"""eta of the hybrid: lambda = exp(-eta alpha) (LK losses, arXiv 2602.23881)."""


def mtp_loss(
    scores: DraftScores, name: str, *, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss `name` (of `LOSSES`) of K steps at N positions, / denominator; no positions give zero.

    The statistics are divided too: the mean expected acceptance length (`accept_length`, of a drawn
    draft, with the bonus token) and each step's mean acceptance probability (`accept_1` ...).
    """
    loss = LOSSES[name](scores).sum() / denominator
    with torch.no_grad():
        lengths = 1.0 + expected_drafts(scores.overlap)
        stats = {"loss": loss.detach(), "accept_length": lengths.sum() / denominator}
        for step, overlap in enumerate(scores.overlap, start=1):
            stats[f"accept_{step}"] = overlap.sum() / denominator
    return loss, stats


def expected_drafts(acceptance: Tensor) -> Tensor:
    """E[L] [N] of acceptance probabilities [K, N]: sum_j prod_{i<=j} alpha_i drafts are accepted (Bebop eq. 12).

    A round emits one token more, the corrected or the bonus one: SGLang's "accept length" is 1 + E[L].
    """
    return acceptance.cumprod(dim=0).sum(dim=0)


def cross_entropy(scores: DraftScores) -> Tensor:
    """[N] -log q of the data's token, mean over the steps."""
    return -scores.label_logprobs.mean(dim=0)


def total_variation(scores: DraftScores) -> Tensor:
    """[N] 1 - alpha, mean over the steps (Bebop eq. 10). Its gradient vanishes where p and q hardly overlap."""
    return 1.0 - scores.overlap.mean(dim=0)


def end_to_end_tv(scores: DraftScores) -> Tensor:
    """[N] 1 - E[L] / K (Bebop eq. 12-13): step i weighs w_i = 1/(K alpha_i) sum_{j>=i} prod_{m<=j} alpha_m."""
    return 1.0 - expected_drafts(scores.overlap) / scores.steps


def hybrid(scores: DraftScores) -> Tensor:
    """[N] mean over the steps of lambda KL(p || q) + (1 - lambda) TV, lambda = exp(-3 alpha) without gradient.

    KL where the overlap is small and TV has no gradient, TV where it is large (arXiv 2602.23881).
    """
    weight = torch.exp(-HYBRID_DECAY * scores.overlap.detach())
    losses = weight * scores.divergence + (1.0 - weight) * (1.0 - scores.overlap)
    return losses.mean(dim=0)


LOSSES: Mapping[str, Callable[[DraftScores], Tensor]] = {
    "ce": cross_entropy,
    "tv": total_variation,
    "e2e_tv": end_to_end_tv,
    "hybrid": hybrid,
}
