"""What a run came to: a plain mapping for `summary.json`, made from the history of its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlframe.durable_files import write_atomic
from rlframe.metrics import HELD_OUT, STEP, VALUES, Line, domains, series

ENDS = 5
"""Steps averaged at either end of a curve, because one step's reward is noisy."""

Summary = dict[str, Any]


def summarise(history: Sequence[Line]) -> Summary:
    """Numbers only where there are any; seconds are of the run itself, over all its resumes.

    `reward` and the losses are means over the first and the last steps, `held_out` and
    `explained_variance` the first and the last evaluation; each with `domains` where they were logged.
    """
    steps = [line for line in history if line["event"] == STEP]
    summary: Summary = {
        "steps": steps[-1]["step"] if steps else 0,
        "seconds": sum(line.get("time/total_s") or 0.0 for line in history),
        "tokens": _total(steps, "tokens"),
        "actions": _total(steps, "actions"),
        "tokens_per_s": _median([v for _, v in series(history, "throughput/tokens_per_s")]),
        "phase_seconds": _phases(history),
        "largest_logprob_gap": max((v for _, v in series(history, "gap/max")), default=None),
    }
    for name, key, event in (
        ("reward", "reward/mean", STEP),
        ("loss", "sft/loss", STEP),
        ("held_out", "held_out/mean", HELD_OUT),
        ("value_loss", "value/loss", STEP),
        ("explained_variance", "value/explained_variance", VALUES),
    ):
        best = min if name.endswith("loss") else max
        ends = _ends(series(history, key, event=event), ENDS if event == STEP else 1, best)
        if ends:
            summary[name] = ends
    for name, group, event in (("reward", "reward/", STEP), ("held_out", "held_out/", HELD_OUT)):
        by_domain = {
            domain: _ends(
                series(history, group + domain, event=event), 1 if name != "reward" else ENDS
            )
            for domain in domains(history, event=event)
        }
        if by_domain and name in summary:
            summary[name]["domains"] = by_domain
    return summary


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(summary, indent=2) + "\n")


def _ends(
    points: Sequence[tuple[int, float]],
    width: int,
    best: Callable[[Sequence[float]], float] = max,
) -> dict[str, Any]:
    values = [value for _, value in points]
    if not values:
        return {}
    return {
        "first": _mean(values[:width]),
        "last": _mean(values[-width:]),
        "best": best(values),
        "first_step": points[0][0],
        "last_step": points[-1][0],
    }


def _phases(history: Sequence[Line]) -> dict[str, float]:
    """Seconds of every span over the run, longest first."""
    totals: dict[str, float] = {}
    for line in history:
        for name, value in line.items():
            if name.startswith("time/") and name != "time/total_s" and value is not None:
                phase = name.removeprefix("time/").removesuffix("_s")
                totals[phase] = totals.get(phase, 0.0) + value
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _total(steps: Sequence[Line], what: str) -> int:
    names = (f"rollout/{what}", f"sft/{what}", f"value/{what}")
    return int(sum(line.get(name) or 0 for line in steps for name in names))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
