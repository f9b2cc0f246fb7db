"""A KL penalty in the reward: -coef * KL(policy || reference) at every action, from sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlframe.types import BoolArray, Float32Array

MAX_LOG_RATIO = 20.0


def kl_rewards(
    old_logprobs: Sequence[Float32Array],
    ref_logprobs: Sequence[Float32Array],
    loss_masks: Sequence[BoolArray],
    *,
    estimator: str,
    coef: float,
) -> list[Float32Array]:
    """One array [T] a trace, 0 outside the mask. Estimators as in `trainer.losses.kl`."""
    found = []
    for old, ref, mask in zip(old_logprobs, ref_logprobs, loss_masks, strict=True):
        x = np.clip(ref.astype(np.float64) - old, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        amounts = {"k1": -x, "k2": 0.5 * x * x, "k3": np.expm1(x) - x}[estimator]
        found.append(np.where(mask, -coef * amounts, 0.0).astype(np.float32))
    return found
