"""What a role learns, as plain numbers: the algorithm's loss parameters. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class DistillationObjective:
    """A divergence from the teachers in the policy's loss (`trainer.losses.divergences`)."""

    divergence: str
    """reverse_kl, forward_kl or jsd."""
    coef: float
    beta: float = 0.5
    temperature: float = 1.0
    tail: str = "bucket"


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The policy's loss; each field is the knob of the same name in `PpoConfig`.

    A 0 turns a bound off. `kl_coef` is of a KL in the loss; one in the reward is not the trainer's.
    """

    clip_low: float
    clip_high: float
    dual_clip: float
    importance_cap: float
    entropy_coef: float
    temperature: float = 1.0
    """Of the engines' sampling: the policy that acts, and learns, is the softmax at this temperature."""
    policy_loss: str = "ppo"
    ratio_against: str = "old"
    mask_below: float = 0.0
    mask_above: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    distillation: DistillationObjective | None = None


@dataclass(frozen=True, slots=True)
class ValueObjective:
    """The critic's loss."""

    value_clip: float


@dataclass(frozen=True, slots=True)
class SftObjective:
    """Cross entropy of the tokens under `loss_mask`."""


Objective: TypeAlias = PolicyObjective | ValueObjective | SftObjective

COLUMNS: dict[type[Objective], tuple[str, ...]] = {
    PolicyObjective: ("loss_mask", "advantages", "old_logprobs", "rollout_logprobs"),
    ValueObjective: ("loss_mask", "returns", "old_values"),
    SftObjective: ("loss_mask",),
}
"""The fields of `TrainRow`, beside the tokens, that each loss reads wherever it is used."""
OPTIONAL_COLUMNS: dict[type[Objective], tuple[str, ...]] = {
    PolicyObjective: (
        "loss_weights",
        "ref_logprobs",
        "teacher_top_ids",
        "teacher_top_logprobs",
        "teacher_weights",
        "teacher_index",
    ),
    ValueObjective: (),
    SftObjective: (),
}
"""Fields that it reads if the rows have them (all or none do)."""
