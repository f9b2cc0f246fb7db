"""Where a step's numbers come from: by position in the trajectory and by sub-trace. Pure functions.

Position is the share of a trajectory's actions that lie before, in thirds: `early`, `middle`, `late`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlframe.types import Float32Array, TrainRow, Trajectory

THIRDS = ("early", "middle", "late")
SUB_TRACES = 4
"""Sub-traces from this one on are counted together."""


def of_positions(
    trajectories: Sequence[Trajectory], rows: Sequence[TrainRow], *, has_critic: bool
) -> dict[str, float]:
    """`gap/early`: mean |train - rollout logprob| there, and what `of_values` says of the critic. A place
    without an action has no number."""
    thirds, _ = _places(trajectories)
    mask = _joined([row.loss_mask for row in rows]).astype(np.bool_)
    old, sampled = (
        _joined([getattr(r, n) for r in rows]) for n in ("old_logprobs", "rollout_logprobs")
    )
    gap = np.abs(old - sampled)
    found = {f"gap/{THIRDS[k]}": mean for k, mean in _means(gap, thirds, mask).items()}
    if has_critic:
        values = [row.old_values for row in rows]
        by_place = of_values(trajectories, rows, values)
        found |= {f"critic/{name}": value for name, value in by_place.items()}
    return found


def of_values(
    trajectories: Sequence[Trajectory], rows: Sequence[TrainRow], values: Sequence[Float32Array]
) -> dict[str, float]:
    """`bias_early`, `bias_trace_0`: mean V - return there; `explained_variance_early`, ...: 1 - Var(return -
    V) / Var(return) there, where returns vary. By sub-trace only where a trajectory has several."""
    thirds, ordinals = _places(trajectories)
    mask = _joined([row.loss_mask for row in rows]).astype(np.bool_)
    returns = _joined([row.returns for row in rows])
    error = _joined(values) - returns
    named = {THIRDS[k]: thirds == k for k in range(len(THIRDS))}
    if any(len(t.traces) > 1 for t in trajectories):
        named |= {f"trace_{k}": ordinals == k for k in range(SUB_TRACES)}
    found: dict[str, float] = {}
    for name, there in named.items():
        chosen = there & mask
        if chosen.any():
            found[f"bias_{name}"] = float(error[chosen].mean())
            variance = float(returns[chosen].var())
            if variance > 0:
                unexplained = float(error[chosen].var()) / variance
                found[f"explained_variance_{name}"] = 1.0 - unexplained
    return found


def effective_batch(
    rows: Sequence[TrainRow], trajectories: Sequence[Trajectory]
) -> dict[str, float]:
    """(sum |A|)^2 / sum A^2 over actions: of how many equally loud ones the update could be made; and
    the share of trajectories whose advantages are not all 0."""
    loud = [np.abs(row.advantages[row.loss_mask].astype(np.float64)) for row in rows]
    total = float(sum(a.sum() for a in loud))
    squares = float(sum(np.vdot(a, a) for a in loud))
    heard, flat = 0, 0
    for trajectory in trajectories:
        end = flat + len(trajectory.traces)
        heard += any(a.any() for a in loud[flat:end])
        flat = end
    return {
        "batch/effective_actions": total * total / squares if squares else 0.0,
        "batch/learning_trajectories": heard / len(trajectories),
    }


def staleness_shares(trajectories: Sequence[Trajectory], *, version: int) -> dict[str, float]:
    """Share of the actions that lag so many versions: `staleness/lag_0`, `staleness/lag_1`, ..."""
    traces = [trace for t in trajectories for trace in t.traces]
    lags = np.concatenate([version - trace.versions[trace.loss_mask] for trace in traces])
    values, counts = np.unique(lags, return_counts=True)
    return {
        f"staleness/lag_{int(value)}": float(count / len(lags))
        for value, count in zip(values, counts, strict=True)
    }


def _places(
    trajectories: Sequence[Trajectory],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """[all tokens] the third, and the number of the sub-trace, of each token."""
    thirds, ordinals = [], []
    for trajectory in trajectories:
        masks = [trace.loss_mask for trace in trajectory.traces]
        before = np.cumsum(np.concatenate(masks)) - 1
        count = max(trajectory.actions, 1)
        thirds.append(np.clip(before * len(THIRDS) // count, 0, len(THIRDS) - 1))
        for k, mask in enumerate(masks):
            ordinals.append(np.full(len(mask), min(k, SUB_TRACES - 1)))
    return np.concatenate(thirds).astype(np.intp), np.concatenate(ordinals).astype(np.intp)


def _means(
    amounts: npt.NDArray[np.float64], places: npt.NDArray[np.intp], mask: npt.NDArray[np.bool_]
) -> Mapping[int, float]:
    sums = np.bincount(places[mask], weights=amounts[mask])
    counts = np.bincount(places[mask])
    return {int(k): float(sums[k] / counts[k]) for k in np.flatnonzero(counts)}


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    joined: npt.NDArray[np.float64] = np.concatenate(arrays).astype(np.float64)
    return joined
