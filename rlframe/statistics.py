"""What a step's numbers are: pure functions from trajectories and rows to named metrics.

Names are `group/what`; a mean over tokens is over the batch's actions unless the name says otherwise.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlframe.diagnosis import effective_batch, of_positions, staleness_shares
from rlframe.guard_statistics import guard_metrics
from rlframe.types import Float32Array, Int32Array, Status, Trace, TrainRow, Trajectory

SESSION_COUNTS = (
    "full_renders",
    "coalesced",
    "replayed",
    "aborted",
    "malformed_calls",
    "infra_faults",
)


@dataclass(frozen=True, slots=True)
class Gap:
    """|train - rollout logprob| over actions; both 0 where there is nothing to compare."""

    mean: float
    max: float


def logprob_gap(traces: Sequence[Trace], logprobs: Sequence[Float32Array], *, version: int) -> Gap:
    """Between engine and trainer, over the model calls that exactly this weight version answered.

    For those both compute the same model, so that the gap measures numerics alone. Older tokens
    differ by what the policy has learnt since; and so do later tokens of a call that an update met
    (`rollout.partial`), which the engine went on with from older keys and values.
    """
    gaps = []
    for trace, trained in zip(traces, logprobs, strict=True):
        same = trace.loss_mask & (_versions_at_begin(trace) == version)
        gaps.append(np.abs(trained[same].astype(np.float64) - trace.rollout_logprobs[same]))
    flat = np.concatenate(gaps) if gaps else np.zeros(0)
    return Gap(float(flat.mean()), float(flat.max())) if flat.size else Gap(0.0, 0.0)


def _versions_at_begin(trace: Trace) -> Int32Array:
    """[T] of every token the version that sampled the first token of its unbroken run of actions."""
    begins = trace.loss_mask & ~np.concatenate([[False], trace.loss_mask[:-1]])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(trace)), 0))
    versions: Int32Array = trace.versions[first]
    return versions


def explained_variance(predicted: Float32Array, actual: Float32Array) -> float:
    """1 - Var(actual - predicted) / Var(actual); 0 where the targets do not vary."""
    variance = float(np.var(actual, dtype=np.float64))
    if variance == 0.0:
        return 0.0
    return 1.0 - float(np.var(actual.astype(np.float64) - predicted)) / variance


def rewards_by_domain(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean total reward: over all (`mean`), and over each domain by its name."""
    by_domain: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        by_domain[trajectory.domain].append(trajectory.reward)
    means = {domain: float(np.mean(values)) for domain, values in sorted(by_domain.items())}
    return {"mean": float(np.mean([t.reward for t in trajectories])), **means}


def of_step(
    trajectories: Sequence[Trajectory],
    rows: Sequence[TrainRow],
    *,
    version: int,
    has_critic: bool = True,
) -> dict[str, float]:
    """The metrics of one step's batch; `version` is the trainer's at consumption."""
    return {
        **{f"reward/{name}": value for name, value in rewards_by_domain(trajectories).items()},
        **_rollout(trajectories),
        **_agents(trajectories),
        **guard_metrics(trajectories),
        **_staleness(trajectories, version),
        **(_critic(rows) if has_critic else {}),
        **_gap(trajectories, rows, version),
        **of_positions(trajectories, rows, has_critic=has_critic),
        **effective_batch(rows, trajectories),
        **staleness_shares(trajectories, version=version),
    }


def _rollout(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    statuses = Counter(t.status for t in trajectories)
    truncated = sum(n for status, n in statuses.items() if Status(status).is_truncated)
    tokens = sum(len(trace) for t in trajectories for trace in t.traces)
    actions = sum(t.actions for t in trajectories)
    cut_off = sum(t.actions for t in trajectories if t.status.is_truncated)
    return {
        "rollout/trajectories": float(len(trajectories)),
        "rollout/traces": float(sum(len(t.traces) for t in trajectories)),
        "rollout/tokens": float(tokens),
        "rollout/actions": float(actions),
        "rollout/truncated": truncated / len(trajectories),
        "rollout/truncated_actions": cut_off / max(actions, 1),
        "rollout/turns": _mean_of(trajectories, "turns", 1.0),
        "rollout/attempt_seconds": _mean_of(trajectories, "seconds", 0.0),
        "rollout/env_seconds": _mean_of(trajectories, "env_seconds", 0.0),
    }


def _mean_of(trajectories: Sequence[Trajectory], name: str, default: float) -> float:
    return float(np.mean([float(t.info.get(name, default)) for t in trajectories]))


def _agents(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of attempts that compacted, had sub-agents or went through a session; empty without any."""
    measured: dict[str, float] = {}
    for name in ("compactions", "agents", "malformed_calls"):
        if any(name in t.info for t in trajectories):
            counts = [_count(t.info.get(name, 0)) for t in trajectories]
            measured[f"rollout/{name}"] = float(np.mean(counts))
    sessions = [t.info["session"] for t in trajectories if "session" in t.info]
    calls = sum(s["calls"] for s in sessions)
    if calls:
        for name in SESSION_COUNTS:
            measured[f"session/{name}_share"] = sum(s.get(name, 0) for s in sessions) / calls
        measured["session/budget_spent_share"] = sum(s["synthetic"] for s in sessions) / len(
            sessions
        )
    return measured


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value)


def _staleness(trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
    lags = [version - t.oldest_version for t in trajectories]
    return {"staleness/mean": float(np.mean(lags)), "staleness/max": float(max(lags))}


def _critic(rows: Sequence[TrainRow]) -> dict[str, float]:
    values = np.concatenate([row.old_values[row.loss_mask] for row in rows])
    returns = np.concatenate([row.returns[row.loss_mask] for row in rows])
    return {
        "critic/explained_variance": explained_variance(values, returns),
        "critic/value_mean": float(values.mean(dtype=np.float64)),
        "critic/value_bias": float((values - returns).mean(dtype=np.float64)),
    }


def _gap(
    trajectories: Sequence[Trajectory], rows: Sequence[TrainRow], version: int
) -> dict[str, float]:
    traces = [trace for t in trajectories for trace in t.traces]
    gap = logprob_gap(traces, [row.old_logprobs for row in rows], version=version)
    return {"gap/mean": gap.mean, "gap/max": gap.max}


def mean_of(group: str, updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the updates of one step, named `group/what`; empty for no update."""
    if not updates:
        return {}
    return {f"{group}/{key}": float(np.mean([u[key] for u in updates])) for key in updates[0]}
