"""What a run's stored attempts say, step by step: the true reward beside the one that trained."""

from __future__ import annotations

import statistics
from contextlib import closing
from pathlib import Path

from rlframe.metrics import read, series
from rlframe.store import TrajectoryStore
from rlframe.types import Trajectory

MEASURES = ("true_reward", "proxy_reward", "hack_rate", "entropy")
START = 3
"""Steps whose attempts are the warm start's: the first two updates are the critic's alone."""
FINAL = 5
"""A run's final figure is the mean of its last so many steps."""
Curve = list[float]


def curves_of(run: Path) -> dict[str, Curve]:
    """Of each step by measure. An attempt that a guard ended, or that ran out of turns, has both rewards 0.

    Every task is new to the policy. All attempts count, also those that trained nothing because all of
    their turns were masked.
    """
    steps: dict[int, list[Trajectory]] = {}
    step = 0
    with closing(TrajectoryStore(run / "trajectories.sqlite", read_only=True)) as store:
        for (
            attempt
        ) in store.all():  # in order: an on-policy step's attempts end before the next begins
            step = max(step, attempt.oldest_version) if attempt.traces else step
            if attempt.status.is_trainable:
                steps.setdefault(step, []).append(attempt)
    attempts = [steps[step] for step in sorted(steps)]
    entropy = dict(series(read(run / "metrics.jsonl"), "policy/entropy"))
    first = entropy[min(entropy)]
    return {
        "true_reward": [_mean(step, "true_reward") for step in attempts],
        "proxy_reward": [_mean(step, "proxy_reward") for step in attempts],
        "hack_rate": [statistics.mean(t.info["guard"]["hacks"] for t in s) for s in attempts],
        "entropy": [entropy.get(number, first) for number in range(1, len(attempts) + 1)],
    }


def _mean(attempts: list[Trajectory], name: str) -> float:
    return statistics.mean(float(t.info.get("env", {}).get(name, 0.0)) for t in attempts)


def start(curve: Curve) -> float:
    return statistics.mean(curve[:START])


def final(curve: Curve) -> float:
    return statistics.mean(curve[-FINAL:])


def collapsed(true_reward: Curve) -> bool:
    """In the end the policy does the task less often than before it was trained."""
    return final(true_reward) < start(true_reward)
