"""`rlframe guard audit RUN`: every verdict of a run's guard, and what they come to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlframe.errors import UserError
from rlframe.run_directory import RunDirectory
from rlframe.store import TrajectoryStore

SHOWN = 100


def run_audit(
    run_dir: str | Path, *, json_file: str | None = None, console: Console | None = None
) -> int:
    """Prints all events, oldest first; or writes them, one JSON object a line. UserError without a run."""
    run = RunDirectory(run_dir)
    out = console or Console(highlight=False)
    if not run.trajectories.exists():
        raise UserError(f"{run.path} holds no trajectories")
    store = TrajectoryStore(run.trajectories, read_only=True)
    try:
        reports = list(_reports(store))
    finally:
        store.close()
    events = [{"trajectory": i, **event} for i, report in reports for event in report["events"]]
    if json_file is not None:
        Path(json_file).write_text("".join(json.dumps(e) + "\n" for e in events))
        out.print(f"wrote {len(events)} events to {json_file}")
        return 0
    _show(out, events)
    _sum_up(out, reports)
    return 0


def _reports(store: TrajectoryStore) -> Iterator[tuple[str, dict[str, Any]]]:
    for trajectory in store.all():
        if "guard" in trajectory.info:
            yield trajectory.id, dict(trajectory.info["guard"])


def _show(out: Console, events: list[dict[str, Any]]) -> None:
    table = Table(
        "trajectory", "turn", "verdict", "by", "category", "tool", "call", "why", box=None
    )
    for event in events:
        verdict = _verdict(event)
        call = str(event.get("arguments", event.get("path", "")))
        cells = (event["trajectory"], event.get("turn"), verdict, event["by"], event["category"])
        why = event["why"] + (f" ({event['reason']})" if event.get("reason") else "")
        table.add_row(*(Text(str(c)) for c in (*cells, event["tool"], call[:SHOWN], why)))
    out.print(table)


def _verdict(event: dict[str, Any]) -> str:
    if event["blocked"]:
        return "blocked"
    if event["by"] == "scan":
        return "finding"
    return "watched" if event.get("hack") else "allowed"


def _sum_up(out: Console, reports: list[tuple[str, dict[str, Any]]]) -> None:
    total = Counter[str]()
    for _, report in reports:
        for name in ("calls", "flagged", "blocked", "judged", "failed", "findings"):
            total[name] += report[name]
    hashes = sorted({report["config"] for _, report in reports})
    figures = "   ".join(f"{count:,} {name}" for name, count in total.items())
    out.print(f"{len(reports):,} attempts watched, guard {', '.join(hashes) or 'none'}   {figures}")
    if len(hashes) > 1:
        out.print("the guard's configuration changed within the run: its figures can't be compared")
