"""What an evaluation came to, for `eval.json`: per suite, per domain, and over all tasks.

What counts: attempts that ended by the policy's doing (completed or truncated). One that our side lost is
never a zero: it is left out and reported. One that failed by the task's own code is left out too, or a
zero, as `eval.task_faults` says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlframe.evaluation.estimators import Estimate, mean_score, pass_at, pass_hat, shown_ks
from rlframe.evaluation.measured import Measured
from rlframe.types import Status

FORMAT = 1
"""Of eval.json."""
TOKENS_PRICED = 1_000_000

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prices:
    """Of tokens per million, and of an engine per hour; 0 where it costs nothing, or nobody said."""

    prompt: float = 0.0
    sampled: float = 0.0
    engine_hour: float = 0.0
    currency: str = "USD"

    @property
    def any(self) -> bool:
        return bool(self.prompt or self.sampled or self.engine_hour)


@dataclass(frozen=True, slots=True)
class Rules:
    """How attempts become figures."""

    repeats: int
    solved_from: float
    task_faults: str
    """`exclude` or `zero`."""
    prices: Prices = Prices()
    engines: int = 1

    def counts(self, attempt: Measured) -> bool:
        if attempt.status is Status.FAILED:
            return self.task_faults == "zero"
        return attempt.status.is_trainable

    def score(self, attempt: Measured) -> float:
        return 0.0 if attempt.status is Status.FAILED else attempt.score


def summarise(attempts: Sequence[Measured], rules: Rules, *, wall_s: float) -> Figures:
    """`{"total": figures, "suites": {name: figures + {"domains": {name: figures}}}}`.

    `wall_s`: how long engines were up for it; a suite's share of that is by its tokens.
    """
    sampled = sum(a.sampled_tokens for a in attempts)

    def of(part: Sequence[Measured]) -> Figures:
        share = sum(a.sampled_tokens for a in part) / sampled if sampled else 0.0
        return figures(part, rules, engine_hours=rules.engines * wall_s * share / 3600.0)

    suites = {}
    for suite, part in _by(attempts, lambda a: a.suite).items():
        domains = _by(part, lambda a: a.domain)
        suites[suite] = {**of(part), "domains": {d: of(some) for d, some in domains.items()}}
    return {"total": of(attempts), "suites": suites}


def figures(attempts: Sequence[Measured], rules: Rules, *, engine_hours: float = 0.0) -> Figures:
    """Of some attempts. Shares are of all of them, scores of those that count."""
    scores = [
        [rules.score(a) for a in of_task if rules.counts(a)]
        for of_task in _by(attempts, lambda a: a.task_id).values()
    ]
    mean = mean_score(scores)
    statuses = Counter(a.status for a in attempts)
    truncated = sum(n for status, n in statuses.items() if status.is_truncated)
    lost = statuses[Status.INFRA_ERROR] + statuses[Status.ABORTED]
    whole = max(len(attempts), 1)
    ks = shown_ks(rules.repeats)
    return {
        "mean": mean.value,
        "standard_error": mean.standard_error,
        "tasks": len(scores),
        "tasks_counted": mean.tasks,
        "attempts": len(attempts),
        "attempts_counted": sum(len(task) for task in scores),
        "pass_at": _by_k(ks, lambda k: pass_at(k, scores, solved_from=rules.solved_from)),
        "pass_hat": _by_k(ks, lambda k: pass_hat(k, scores, solved_from=rules.solved_from)),
        "infra_failure_rate": lost / whole,
        "task_fault_rate": statuses[Status.FAILED] / whole,
        "truncation_rate": truncated / whole,
        "statuses": {status.value: n for status, n in sorted(statuses.items())},
        "guard": {
            "blocked_turns": sum(a.blocked_turns for a in attempts),
            "attempts_blocked": sum(a.blocked_turns > 0 for a in attempts),
        },
        "made_again": sum(a.tries - 1 for a in attempts),
        "faults": faults(attempts),
        "cost": cost(attempts, rules.prices, engine_hours),
    }


def cost(attempts: Sequence[Measured], prices: Prices, engine_hours: float) -> Figures:
    """Tokens and seconds in all and per attempt; money where there are prices."""
    prompt = sum(a.prompt_tokens for a in attempts)
    sampled = sum(a.sampled_tokens for a in attempts)
    seconds = sum(a.seconds for a in attempts)
    count = max(len(attempts), 1)
    found: Figures = {
        "prompt_tokens": prompt,
        "sampled_tokens": sampled,
        "attempt_seconds": round(seconds, 3),
        "prompt_tokens_per_attempt": prompt / count,
        "sampled_tokens_per_attempt": sampled / count,
        "seconds_per_attempt": seconds / count,
        "turns_per_attempt": sum(a.turns for a in attempts) / count,
    }
    if prices.any:
        tokens = (prompt * prices.prompt + sampled * prices.sampled) / TOKENS_PRICED
        found["money"] = tokens + engine_hours * prices.engine_hour
        found["money_per_attempt"] = found["money"] / count
        found["currency"] = prices.currency
    return found


def faults(attempts: Sequence[Measured], *, shown: int = 5) -> list[dict[str, Any]]:
    """Whose fault what failed was, and why, most frequent first."""
    reasons = Counter(
        ("task" if a.status is Status.FAILED else "infrastructure", a.error.splitlines()[0][:200])
        for a in attempts
        if not a.status.is_trainable and a.error
    )
    return [
        {"fault": whose, "reason": why, "attempts": n}
        for (whose, why), n in reasons.most_common(shown)
    ]


def per_task(attempts: Sequence[Measured], rules: Rules) -> list[dict[str, Any]]:
    """What a comparison needs: every task's scores that count, by repeat."""
    rows = []
    for task_id, some in sorted(_by(attempts, lambda a: a.task_id).items()):
        ordered = sorted(some, key=lambda a: a.repeat)
        rows.append(
            {
                "task": task_id,
                "suite": ordered[0].suite,
                "domain": ordered[0].domain,
                "scores": [rules.score(a) for a in ordered if rules.counts(a)],
                "statuses": [a.status.value for a in ordered],
            }
        )
    return rows


def versions(attempts: Sequence[Measured]) -> list[int]:
    """Weight versions of all tokens."""
    return sorted({v for a in attempts for v in a.versions})


def _by_k(ks: Sequence[int], of: Callable[[int], Estimate]) -> Figures:
    """Left out where no task has k attempts that count."""
    found = {k: of(k) for k in ks}
    return {
        str(k): {
            "value": e.value,
            "standard_error": e.standard_error,
            "tasks": e.tasks,
        }
        for k, e in found.items()
        if e.tasks
    }


def _by(
    attempts: Sequence[Measured], key: Callable[[Measured], str]
) -> Mapping[str, list[Measured]]:
    parts: dict[str, list[Measured]] = defaultdict(list)
    for attempt in attempts:
        parts[key(attempt)].append(attempt)
    return dict(sorted(parts.items()))
