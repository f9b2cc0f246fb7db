"""The guard of a run, from its configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rlframe.config.schema import GuardConfig
from rlframe.errors import UserError
from rlframe.interfaces import Ask, Guard

if TYPE_CHECKING:
    from envs.guard.guard import GuardSettings


def guard_maker(config: GuardConfig) -> Callable[[Ask], Guard] | None:
    """What a worker makes its guard with; None: there is none. The same in training and evaluation."""
    from envs.guard.guard import make_guard

    if config.mode == "off":
        return None
    return partial(make_guard, _settings(config))


def _settings(config: GuardConfig) -> GuardSettings:
    from envs.guard.guard import GuardSettings

    return GuardSettings(
        mode=config.mode,
        blocks=config.blocks,
        action=config.action,
        loss=config.loss,
        penalty=config.penalty,
        on_finding=config.on_finding,
        judge_url=config.judge.url,
        judge_model=config.judge.model,
        judge_key_env=config.judge.key_env,
        judge_timeout_s=config.judge.timeout_s,
        on_judge_failure=config.judge.on_failure,
    )


def run_score(file: str, *, config: GuardConfig, json_file: str | None = None) -> int:
    """`rlframe guard score FILE`: recall, precision, false blocks and time, in all and by category."""
    from envs.guard.guard import make_guard
    from envs.guard.labelled import Score, by_category, read_cases
    from envs.guard.scoring import verdicts

    cases = read_cases(Path(file))
    if config.mode == "off":
        raise UserError("guard.mode=off judges nothing: take rules or judge")
    guard = make_guard(_settings(config))
    outcomes = asyncio.run(verdicts(guard, cases))
    scores = {"all": Score.of(outcomes), **by_category(outcomes)}
    table = Table(
        "category",
        "hacks",
        "benign",
        "recall",
        "precision",
        "false blocks",
        "ms a call",
        "p95",
        box=None,
    )
    for name, score in scores.items():
        shares = [f"{v:.3f}" for v in (score.recall, score.precision, score.false_blocks)]
        table.add_row(
            name,
            str(score.hacks),
            str(score.benign),
            *shares,
            f"{score.ms_mean:.2f}",
            f"{score.ms_p95:.2f}",
        )
    out = Console(highlight=False)
    out.print(table)
    for outcome in outcomes:
        if outcome.blocked != outcome.case.is_hack:
            kind = "missed" if outcome.case.is_hack else "false block"
            out.print(
                f"{kind}: {outcome.case.id} ({outcome.case.category}) {outcome.why}", markup=False
            )
    out.print(f"guard {guard.settings.hash}, mode {config.mode}")
    if json_file is not None:
        document = {
            "guard": guard.settings.hash,
            "scores": {k: asdict(v) for k, v in scores.items()},
        }
        Path(json_file).write_text(json.dumps(document, indent=1) + "\n")
    return 0
