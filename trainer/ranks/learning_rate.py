"""The learning rate as a function of the loop's step: no state, so nothing to save or to resume."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, peak: float, floor: float, warmup_steps: int, decay: str, total_steps: int
) -> float:
    """Of loop step `step` (0, 1, ...): linear warm-up to `peak`, then `decay`.

    The warm-up's first step already learns (peak / warmup_steps) and its last one has `peak`. `linear`
    and `cosine` fall from `peak` towards `floor`, which they would reach at step `total_steps`, one
    after the last; from there on it is `floor`. `constant` stays at `peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if decay == "linear":
        share = 1.0 - progress
    elif decay == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"lr_decay: '{decay}' is none of constant, linear, cosine")
    return floor + (peak - floor) * share
