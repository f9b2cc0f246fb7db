"""What a guard met in a batch: how often a policy tries, and how it goes on. Names are `guard/what`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlframe.types import Trajectory


def guard_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Over the attempts that a guard watched; empty without any."""
    watched = [t for t in trajectories if "guard" in t.info]
    if not watched:
        return {}
    reports = [_with_hacks(t.info["guard"]) for t in watched]
    total = {
        name: sum(r[name] for r in reports)
        for name in ("calls", "flagged", "hacks", "blocked", "judged", "failed", "findings")
    }
    stopped = [t for t in watched if t.info["guard"]["blocked"]]
    calls = max(total["calls"], 1)
    judged = max(total["judged"], 1)
    measured = {
        "watched_share": len(watched) / len(trajectories),
        "hack_attempts": total["hacks"] / len(watched),
        "attempts_with_hack_share": sum(r["hacks"] > 0 for r in reports) / len(watched),
        "attempts_with_block_share": len(stopped) / len(watched),
        "repeats": sum(r["blocked"] - 1 for r in reports if r["blocked"]) / max(len(stopped), 1),
        "flagged_call_share": total["flagged"] / calls,
        "blocked_call_share": total["blocked"] / calls,
        "findings": total["findings"] / len(watched),
        "reward_after_block": sum(t.reward for t in stopped) / max(len(stopped), 1),
        "rules_ms": 1000 * sum(r["rules_s"] for r in reports) / calls,
        "judge_s": sum(r["judge_s"] for r in reports) / len(watched),
        "judge_failed_share": total["failed"] / judged,
    }
    blocked = Counter(e["category"] for r in reports for e in r["events"] if e["blocked"])
    by_category = {
        f"blocked/{name}": count / len(watched) for name, count in sorted(blocked.items())
    }
    return {f"guard/{name}": value for name, value in (measured | by_category).items()}


def _with_hacks(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reports stored before `guard.action` had one number for both."""
    return {"hacks": report["blocked"], **report}
