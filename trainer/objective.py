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
class ValueBins:
    """The values that a distributional critic's outputs stand for, from `lowest` to `highest`.

    `sigma` > 0: the range is cut into `count` bins, and the target is a Gaussian around the return, its
    deviation `sigma` bin widths (HL-Gauss; Farebrother et al., arXiv 2403.03950, sec. 3.1: 0.75). 0: `count`
    points from end to end, and the target lies on the two nearest ones (two-hot; Schrittwieser et al., arXiv
    1911.08265, appendix F: its mean is the return exactly). A return beyond the range counts as its end.
    """

    count: int
    lowest: float
    highest: float
    sigma: float

    @property
    def width(self) -> float:
        """From the value of one output to that of the next."""
        return (self.highest - self.lowest) / (self.count if self.sigma > 0 else self.count - 1)

    @property
    def first(self) -> float:
        """The value that the first output stands for: a bin's middle, or the first point."""
        return self.lowest + (0.5 * self.width if self.sigma > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class ValueObjective:
    """The critic's loss: squared error with a clip, or, with `bins`, cross entropy over them (no clip)."""

    value_clip: float
    bins: ValueBins | None = None


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
