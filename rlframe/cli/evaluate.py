"""`rlframe eval`: measure a checkpoint, or compare two results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlframe.durable_files import write_atomic
from rlframe.errors import UserError

COMPARE = "compare"


def run_eval(given: argparse.Namespace) -> int:
    """Returns the exit code."""
    if given.overrides[:1] == [COMPARE]:
        return _compare(given)
    for flag in ("despite", "json", "plot"):
        if getattr(given, flag):
            raise UserError(f"--{flag} is for `rlframe eval compare A B`")
    _check_overrides(given.overrides)
    return _measure(given.overrides, given.config_dir, dry_run=given.dry_run)


def _measure(overrides: Sequence[str], config_dir: str | None, *, dry_run: bool) -> int:
    from rlframe.config.evaluation import load_evaluation
    from rlframe.package_origin import check_package_origin

    check_package_origin()
    config = load_evaluation(overrides, config_dir=config_dir)
    from rlframe.launch.evaluate import run_evaluation, show_plan

    if dry_run:
        print("\n".join(show_plan(config)))
        return 0
    return run_evaluation(config)


def _compare(given: argparse.Namespace) -> int:
    from rlframe.evaluation.compare import compare
    from rlframe.evaluation.plot import plot_results
    from rlframe.evaluation.record import read_result
    from rlframe.evaluation.table import comparison_table

    if len(given.overrides) != 3:
        raise UserError("`rlframe eval compare A B` takes two directories with an eval.json")
    if given.dry_run:
        raise UserError("--dry-run: a comparison starts nothing anyhow")
    _, a, b = given.overrides
    despite = [key.strip() for key in given.despite.split(",") if key.strip()]
    found = compare(a, b, despite=despite)
    console = Console(highlight=False)
    console.print(comparison_table(found))
    if given.json:
        write_atomic(Path(given.json), json.dumps(found.described(), indent=2) + "\n")
    if given.plot:
        results = {f"A {_short(a)}": read_result(a), f"B {_short(b)}": read_result(b)}
        whole = found.whole.paired
        title = f"B - A = {whole.difference:+.3f}, p = {whole.p_value:.2g}"
        plot_results(results, Path(given.plot), title=title)
    return 0


def _short(path: str) -> str:
    file = Path(path)
    return (file.parent if file.suffix == ".json" else file).name


def _check_overrides(overrides: Sequence[str]) -> None:
    """A directory where key=value is wanted is most likely meant as the model."""
    for text in overrides:
        if "=" not in text and Path(text).is_dir():
            raise UserError(
                f"'{text}' is not of the form key=value. Did you mean model.path={text}?"
            )
