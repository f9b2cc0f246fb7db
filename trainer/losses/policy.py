"""The policy's loss: PPO, GSPO or CISPO, with what keeps it stable off-policy."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from trainer.losses.kl import kl_estimate
from trainer.objective import PolicyObjective

MAX_LOG_RATIO = 20.0
"""Beyond it a ratio is bounded and moves nothing: exp(89) is infinite in float32, and where a clip takes
the other branch, the gradient of an infinite ratio is still 0 * inf."""


@dataclass(frozen=True, slots=True, eq=False)
class PolicyInputs:
    """All [T]; only `logprobs` and `entropy` carry gradients."""

    logprobs: Tensor
    old_logprobs: Tensor
    rollout_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    entropy: Tensor | None = None
    weights: Tensor | None = None
    """How much a token counts; none: 1. 0 leaves it out, of the entropy and the KL too."""
    ref_logprobs: Tensor | None = None
    traces: Tensor | None = None
    """int64, which trace a token is of, for GSPO: its numbers are 0, 1, ..."""

    def masked(self) -> PolicyInputs:
        """Only the tokens under the mask."""
        names = [field.name for field in fields(self)]
        return replace(
            self, **{n: t[self.mask] for n in names if (t := getattr(self, n)) is not None}
        )


def policy_loss(
    inputs: PolicyInputs, objective: PolicyObjective, *, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the mask of  weight * w * surrogate + kl_coef KL - entropy_coef H, / denominator.

    With r = pi / pi_old, or pi / pi_rollout where `ratio_against` is `rollout` (no pi_old then):

    ppo     max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) (Schulman et al., arXiv 1707.06347, eq. 7;
            asymmetric as in DAPO, arXiv 2503.14476); with `dual_clip` c a negative advantage's loss is
            at most -A c (Ye et al., arXiv 1912.09729, eq. 5)
    gspo    the same with r's geometric mean over the trace's actions (Zheng et al., arXiv 2507.18071,
            GSPO-token: the gradient of each token is its own). Every trace must be whole.
    cispo   -A log pi times the clipped r, without gradient through it (MiniMax, arXiv 2506.13585, eq. 4)

    The engine samples from slightly another distribution than the trainer computes. Against it: w =
    min(pi_old / pi_rollout, importance_cap) (truncated importance sampling), and a band: a token whose
    pi_old / pi_rollout (pi / pi_rollout where `ratio_against` is `rollout`) is below `mask_below` or
    above `mask_above` gives no gradient (IcePop; the double-sided mask of SAO, arXiv 2607.07508).

    The statistics are sums over the mask, to be divided by the same number as the loss.
    """
    t = inputs.masked()
    against_rollout = objective.ratio_against == "rollout"
    base = t.rollout_logprobs if against_rollout else t.old_logprobs
    log_ratio = (t.logprobs - base).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    losses, beyond = _surrogate(t, log_ratio, objective)
    counts, drift, outside = _mismatch(t, log_ratio, objective)
    losses = losses * counts
    kl = None
    if t.ref_logprobs is not None:
        kl = kl_estimate(t.logprobs, t.ref_logprobs, estimator=objective.kl_estimator)
        losses = losses + objective.kl_coef * kl
    if t.entropy is not None and objective.entropy_coef:
        losses = losses - objective.entropy_coef * t.entropy
    if t.weights is not None:
        losses = losses * t.weights
    with torch.no_grad():
        cap = objective.importance_cap
        capped = drift > cap if cap > 0 and not against_rollout else torch.zeros_like(outside)
        stats = {
            "ratio": log_ratio.exp().sum(),
            "clipped": beyond.float().sum(),
            "kl": (log_ratio.exp() - 1.0 - log_ratio).sum(),  # k3 estimate of KL(old || new)
            "importance": drift.sum(),
            "importance_capped": capped.float().sum(),
            "masked": outside.float().sum(),
            "negative_logprob": -t.logprobs.sum(),
        }
        if t.entropy is not None:
            stats["entropy"] = t.entropy.sum()
        if t.weights is not None:
            stats["left_out"] = (t.weights == 0).float().sum()
        if kl is not None:
            stats["kl_reference"] = kl.sum()
    return losses.sum() / denominator, stats


def _surrogate(
    t: PolicyInputs, log_ratio: Tensor, objective: PolicyObjective
) -> tuple[Tensor, Tensor]:
    """The loss of each token, and whether a clip took its gradient."""
    low, high = 1.0 - objective.clip_low, 1.0 + objective.clip_high
    if objective.policy_loss == "cispo":
        ratio = log_ratio.detach().exp()
        clipped = ratio.clamp(low, high)
        return -t.advantages * clipped * t.logprobs, clipped != ratio
    if objective.policy_loss == "gspo":
        assert t.traces is not None
        mean = _mean_by_trace(log_ratio.detach(), t.traces)
        ratio = (mean + log_ratio - log_ratio.detach()).exp()
    else:
        ratio = log_ratio.exp()
    unclipped, clipped = -t.advantages * ratio, -t.advantages * ratio.clamp(low, high)
    losses = torch.maximum(unclipped, clipped)
    if objective.dual_clip > 0:
        bound = -t.advantages * objective.dual_clip
        losses = torch.where(t.advantages < 0, torch.minimum(losses, bound), losses)
    return losses, (clipped > unclipped).detach()


def _mean_by_trace(amounts: Tensor, traces: Tensor) -> Tensor:
    """[T] of each token, the mean over its trace."""
    if not len(amounts):
        return amounts
    count = int(traces.max()) + 1
    sums = amounts.new_zeros(count).index_add_(0, traces, amounts)
    sizes = amounts.new_zeros(count).index_add_(0, traces, torch.ones_like(amounts))
    return (sums / sizes.clamp(min=1.0))[traces]


def _mismatch(
    t: PolicyInputs, log_ratio: Tensor, objective: PolicyObjective
) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: the factor of its loss; pi_old (or pi) / pi_rollout; whether that left the band."""
    against_rollout = objective.ratio_against == "rollout"
    log_drift = log_ratio.detach() if against_rollout else t.old_logprobs - t.rollout_logprobs
    drift = log_drift.clamp(max=MAX_LOG_RATIO).exp()
    factor = torch.ones_like(drift)
    if objective.importance_cap > 0 and not against_rollout:
        factor = drift.clamp(max=objective.importance_cap)
    outside = torch.zeros_like(drift, dtype=torch.bool)
    if objective.mask_below > 0:
        outside |= drift < objective.mask_below
    if objective.mask_above > 0:
        outside |= drift > objective.mask_above
    return torch.where(outside, 0.0, factor), drift, outside
