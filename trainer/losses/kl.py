"""Estimates of KL(policy || reference) from the logprobs of sampled tokens.

With x = log pi_ref - log pi (J. Schulman, "Approximating KL divergence", 2020):

    k1 = -x            unbiased, of either sign
    k2 = x^2 / 2       biased; its gradient is that of the KL (on-policy)
    k3 = e^x - 1 - x   unbiased, never negative
"""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(89) is infinite in float32; a token this unlikely is bounded instead."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: str) -> Tensor:
    """One number a token, in nats, with the gradient in `logprobs`."""
    x = (ref_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match estimator:
        case "k1":
            return -x
        case "k2":
            return 0.5 * x.square()
        case "k3":
            return x.exp() - 1.0 - x
    raise ValueError(f"KL estimator '{estimator}': k1, k2 or k3")
