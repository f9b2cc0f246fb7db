"""When a step's numbers can't be trusted: what is wrong, which traces it came from, and what is kept.

A bad step is one of these: train and rollout logprobs are too far apart; loss or gradients of an update are
not finite; a gradient norm is above `trainer.<role>.grad_norm_limit`. Its trajectories are in the store
already; `bad_steps/000012.json` beside it names the worst traces, and `rlframe replay RUN 12` runs it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlframe.durable_files import write_atomic
from rlframe.errors import RunError
from rlframe.statistics import Gap
from rlframe.types import Float32Array, Trajectory

WORST = 20
"""Traces that a note names."""


def gap_reason(gap: Gap, *, limit: float) -> str:
    """Empty where engine and trainer agree; also a gap that is not a number is too large."""
    if gap.mean <= limit:
        return ""
    return (
        f"mean |train - rollout logprob| is {gap.mean:.3g}, above "
        f"algorithm.max_logprob_gap={limit:g} (largest {gap.max:.3g}). The engine and the trainer do not "
        "compute the same model: check model.dtype, rollout.engine_args (quantisation, attention "
        "backend) and rollout.sampling"
    )


def update_reasons(updated: Mapping[str, float]) -> list[str]:
    """Of updates that a role left out (`policy/skipped` above 0)."""
    return [
        f"{role}: {updated[f'{role}/skipped']:.0%} of the step's updates were left out (loss "
        f"{updated.get(f'{role}/loss', np.nan):.3g}, gradient norm {updated[f'{role}/grad_norm']:.3g}, "
        f"trainer.{role}.grad_norm_limit): the weights are what they were before them"
        for role in ("policy", "critic")
        if updated.get(f"{role}/skipped", 0.0) > 0
    ]


def worst_traces(
    trajectories: Sequence[Trajectory], old_logprobs: Sequence[Float32Array]
) -> list[dict[str, Any]]:
    """Those with the largest |train - rollout logprob|, numbers that are none first.

    `old_logprobs`: one array [T] a trace, all trajectories' traces in order.
    """
    found: list[tuple[float, dict[str, Any]]] = []
    read = iter(old_logprobs)
    for trajectory in trajectories:
        for index, (trace, logprobs) in enumerate(zip(trajectory.traces, read, strict=False)):
            gaps = np.abs(logprobs.astype(np.float64) - trace.rollout_logprobs)[trace.loss_mask]
            if not gaps.size:
                continue
            finite = bool(np.isfinite(gaps).all())
            named = {
                "trajectory": trajectory.id,
                "trace": index,
                "tokens": len(trace),
                "reward": trajectory.reward,
                "mean_gap": float(gaps.mean()) if finite else None,
                "largest_gap": float(gaps.max()) if finite else None,
            }
            found.append((float(gaps.mean()) if finite else np.inf, named))
    found.sort(key=lambda item: -item[0])
    return [named for _, named in found[:WORST]]


@dataclass(slots=True)
class BadSteps:
    """What a run does about them: `stop` at the first, or `skip` up to `max_in_a_row`."""

    action: str
    max_in_a_row: int
    directory: Path
    last_reasons: list[str] = field(default_factory=list, init=False)
    """Of the latest step; empty where it was a good one."""
    _in_a_row: int = field(default=0, init=False)

    def good(self) -> None:
        self._in_a_row = 0
        self.last_reasons = []

    def bad(self, step: int, reasons: Sequence[str], traces: Sequence[Mapping[str, Any]]) -> None:
        """Keeps the note. RunError where the run shall stop."""
        path = self.directory / f"{step:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        note = {"step": step, "reasons": list(reasons), "worst_traces": list(traces)}
        write_atomic(path, json.dumps(note, indent=2) + "\n")
        self._in_a_row += 1
        self.last_reasons = list(reasons)
        said = "; ".join(reasons)
        if self.action == "stop":
            raise RunError(
                f"step {step}: {said}. Its worst traces are named in {path}; "
                f"`rlframe replay {self.directory.parent} {step}` runs it again, and "
                "algorithm.bad_step=skip goes on without it"
            )
        if self._in_a_row > self.max_in_a_row:
            raise RunError(
                f"step {step}: {said}. It is bad step number {self._in_a_row} in a row "
                f"(algorithm.max_bad_steps={self.max_in_a_row}); see {self.directory}"
            )
