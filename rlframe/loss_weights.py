"""How much each action counts in the policy's loss: aggregation, and what is left out.

The loss is a sum over actions divided by their number N, so a weight w_t with sum w = N says whose
mean it is:

    token            every action 1
    per_trajectory   every trajectory N / trajectories, spread evenly over its actions
    per_trace        every trace N / traces

and an action with weight 0 is left out, as if it were not there (the weights of the others still sum to
N). The levels are task -> trajectory -> trace; a trace's siblings are in the same update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlframe.chains import chains_of
from rlframe.types import BoolArray, Float32Array, LinkKind, Trace, Trajectory

OFF = 0


@dataclass(frozen=True, slots=True)
class WeightRules:
    """The knobs of `PpoConfig` that weights depend on."""

    aggregation: str = "token"
    trains: str = "all"
    mask_older_than: int = OFF
    reject_below: float = 0.0
    reject_above: float = 0.0

    @property
    def are_plain(self) -> bool:
        """Every action counts 1."""
        return self == WeightRules()


@dataclass(frozen=True, slots=True)
class Kept:
    """What counts, one array a trace in the order of `batch.flatten`, and shares of the actions."""

    masks: list[BoolArray]
    stale: float
    rejected: float


def kept_actions(
    trajectories: Sequence[Trajectory],
    loss_masks: Sequence[BoolArray],
    old_logprobs: Sequence[Float32Array],
    *,
    rules: WeightRules,
    version: int,
) -> Kept:
    """Leaves out what `trains` says, tokens that lag more than `mask_older_than` versions behind
    `version`, and traces whose geometric mean of pi_old / pi_rollout leaves the band `reject_...`
    (sequence-level rejection; 0 turns a bound off)."""
    masks: list[BoolArray] = []
    actions = stale = rejected = 0
    flat = 0
    for trajectory in trajectories:
        trained = _trained(trajectory, rules.trains)
        for trace, chosen in zip(trajectory.traces, trained, strict=True):
            own = loss_masks[flat]
            actions += int(own.sum())
            mask = own & chosen
            if rules.mask_older_than:
                fresh = trace.versions >= version - rules.mask_older_than
                stale += int((mask & ~fresh).sum())
                mask = mask & fresh
            if not _accepted(trace, own, old_logprobs[flat], rules):
                rejected += int(mask.sum())
                mask = np.zeros_like(mask)
            masks.append(mask)
            flat += 1
    return Kept(masks, stale / max(actions, 1), rejected / max(actions, 1))


def weights(
    trajectories: Sequence[Trajectory],
    loss_masks: Sequence[BoolArray],
    kept: Sequence[BoolArray],
    *,
    aggregation: str,
) -> list[Float32Array]:
    """One array a trace, of one update's trajectories; `loss_masks` say which are its N actions.

    All 0 where nothing is kept. Trajectories (traces) of which nothing is kept do not count as one.
    """
    total = sum(int(mask.sum()) for mask in loss_masks)
    counts = [int(mask.sum()) for mask in kept]
    sizes = _sizes(trajectories, counts, aggregation)
    units = len({unit for unit, size in sizes if size}) if aggregation != "token" else sum(counts)
    found = []
    for mask, (_, size) in zip(kept, sizes, strict=True):
        each = total / (units * size) if units and size else 0.0
        found.append(np.where(mask, np.float32(each), np.float32(0.0)))
    return found


def _sizes(
    trajectories: Sequence[Trajectory], counts: Sequence[int], aggregation: str
) -> list[tuple[int, int]]:
    """Of each trace: the unit whose mean it is part of, and how many actions that has."""
    if aggregation == "token":
        return [(0, 1) for _ in counts]
    if aggregation == "per_trace":
        return list(enumerate(counts))
    sizes: list[tuple[int, int]] = []
    flat = 0
    for index, trajectory in enumerate(trajectories):
        end = flat + len(trajectory.traces)
        sizes += [(index, sum(counts[flat:end]))] * (end - flat)
        flat = end
    return sizes


def _trained(trajectory: Trajectory, trains: str) -> list[BoolArray]:
    """`all`; `last_trace`: of each chain its last sub-trace; `no_summaries`: not the turn that ends a
    sub-trace which another continues (the summary that compaction asks for)."""
    chosen = [np.ones(len(trace), np.bool_) for trace in trajectory.traces]
    if trains == "all":
        return chosen
    if trains == "last_trace":
        last = {chain[-1] for chain in chains_of(trajectory)}
        return [c if k in last else np.zeros_like(c) for k, c in enumerate(chosen)]
    for link in trajectory.links:
        if link.kind is LinkKind.CONTINUES:
            start, end = _last_turn(trajectory.traces[link.parent])
            chosen[link.parent][start:end] = False
    return chosen


def _last_turn(trace: Trace) -> tuple[int, int]:
    """[start, end) of the trace's last run of actions."""
    actions = np.flatnonzero(trace.loss_mask)
    if not len(actions):
        return 0, 0
    breaks = np.flatnonzero(np.diff(actions) > 1)
    return int(actions[breaks[-1] + 1 if len(breaks) else 0]), int(actions[-1]) + 1


def _accepted(
    trace: Trace, mask: BoolArray, old_logprobs: Float32Array, rules: WeightRules
) -> bool:
    if not (rules.reject_below or rules.reject_above) or not mask.any():
        return True
    drift = old_logprobs[mask].astype(np.float64) - trace.rollout_logprobs[mask]
    ratio = float(np.exp(np.clip(drift.mean(), -20.0, 20.0)))
    too_low = rules.reject_below > 0 and ratio < rules.reject_below
    too_high = rules.reject_above > 0 and ratio > rules.reject_above
    return not (too_low or too_high)
