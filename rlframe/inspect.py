"""`rlframe inspect RUN`: what a run did, one trajectory as text, exports. Works on a run that is going on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlframe.errors import UserError, nearest
from rlframe.evaluation.record import RESULT, read_result
from rlframe.evaluation.table import result_table
from rlframe.live import save_picture
from rlframe.live_panel import number, summary_table
from rlframe.metrics import read
from rlframe.parquet_export import export_parquet
from rlframe.run_directory import RunDirectory
from rlframe.store import TrajectoryStore
from rlframe.summary import summarise
from rlframe.types import BoolArray, Trace, Trajectory

TRAINED_STYLE, MASKED_STYLE = "bold green", "bold red"
TRAINED_BRACKETS, MASKED_BRACKETS = "⟦⟧", "⟬⟭"
_LOOKS = ((None, ""), (TRAINED_STYLE, TRAINED_BRACKETS), (MASKED_STYLE, MASKED_BRACKETS))
LATEST = 10


def run_inspect(
    run_dir: str | Path,
    *,
    trajectory: str | None = None,
    export: str | None = None,
    picture: str | None = None,
    console: Console | None = None,
) -> int:
    """Prints the report, or does what was asked for instead. UserError for what does not exist.

    `trajectory`: an id; `export`: a Parquet file to write; `picture`: an SVG of the terminal view.
    """
    run = RunDirectory(run_dir)
    out = console or Console(highlight=False)
    if not run.is_used():
        raise UserError(f"{run.path} holds no run{_nearby(run.path)}")
    if picture is not None:
        history = read(run.metrics)
        last = max((line["step"] for line in history), default=0)
        summary = summarise(history)
        save_picture(Path(picture), history, title=run.path.name, total_steps=last, summary=summary)
        out.print(f"wrote {picture}")
    if trajectory is None and export is None and picture is not None:
        return 0
    if trajectory is None and export is None:
        _report_metrics(out, run)
        if not run.trajectories.exists():  # SFT has none
            return 0
    beside = trajectory is not None and trajectory.startswith("eval/") and run.evaluations.exists()
    store = TrajectoryStore(run.evaluations if beside else run.trajectories, read_only=True)
    try:
        if export is not None:
            out.print(f"wrote {export_parquet(store, Path(export))} trajectories to {export}")
        if trajectory is not None:
            _show_trajectory(out, _find(store, trajectory), _tokenizer(run))
        if trajectory is None and export is None:
            _report_trajectories(out, run, store)
    finally:
        store.close()
    return 0


def _report_metrics(out: Console, run: RunDirectory) -> None:
    history = read(run.metrics)
    if history:
        out.print(summary_table(summarise(history), files={"directory": str(run.path)}))
    if (run.path / RESULT).exists():
        out.print(result_table(read_result(run.path)))


def _report_trajectories(out: Console, run: RunDirectory, store: TrajectoryStore) -> None:
    counts = store.counts()
    out.print("attempts   " + "   ".join(f"{count:,} {name}" for name, count in counts.items()))
    domains = Table("domain", "status", "count", "mean reward", "tokens", "actions", box=None)
    for domain, status, count, reward, tokens, actions in store.query(
        "SELECT domain, status, count(*), avg(reward), avg(tokens), avg(actions) "
        "FROM trajectories GROUP BY domain, status ORDER BY domain, status"
    ):
        figures = [number(_float(value)) for value in (reward, tokens, actions)]
        domains.add_row(Text(str(domain)), str(status), f"{count:,}", *figures)
    out.print(domains)
    reasons = Counter(store.dropped().values()).most_common(5)
    for reason, count in reasons:
        out.print(f"dropped {count:,}: {reason}", markup=False)
    latest = store.query(f"SELECT id, reward FROM trajectories ORDER BY rowid DESC LIMIT {LATEST}")
    if latest:
        shown = ", ".join(f"{i} ({number(_float(reward))})" for i, reward in latest)
        out.print(f"latest     {shown}", markup=False)
        out.print(
            f"one of them: rlframe inspect {run.path} --trajectory {latest[0][0]}", style="dim"
        )


def _show_trajectory(out: Console, trajectory: Trajectory, tokenizer: Any | None) -> None:
    """Its traces as text. What trains is green, and stands in ⟦⟧ where there are no colours; a turn that a
    guard has left out of training is red, and stands in ⟬⟭."""
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim")
    head.add_column()
    for name in ("id", "task_id", "domain", "status"):
        head.add_row(name, Text(str(getattr(trajectory, name))))
    for reward in trajectory.rewards:
        where = "its last action" if reward.position is None else f"token {reward.position}"
        head.add_row("reward", f"{reward.value:g} on {where} of trace {reward.trace}")
    for link in trajectory.links:
        head.add_row("link", f"trace {link.child} {link.kind.value} trace {link.parent}")
    for key, value in trajectory.info.items():
        if key == "guard":
            for event in value["events"]:
                verdict = "blocked" if event["blocked"] else "flagged"
                what = f"turn {event.get('turn')}, {event['tool']}: {event['why']} ({event['by']})"
                head.add_row(verdict, Text(what))
            value = {k: v for k, v in value.items() if k != "events"}
        if key not in ("prompt", "response"):
            head.add_row(key, Text(str(value)))
    out.print(head)
    for index, trace in enumerate(trajectory.traces):
        versions = sorted({int(v) for v in trace.versions[trace.loss_mask]})
        out.rule(
            f"trace {index}: {len(trace)} tokens, {trace.actions} trained, versions {versions}",
            align="left",
        )
        masked = np.zeros(len(trace), np.bool_)
        for which, first, end in trajectory.info.get("guard", {}).get("masked", ()):
            masked[first:end] |= which == index
        out.print(_marked(trace, masked, tokenizer, brackets=not out.is_terminal))


def _marked(trace: Trace, masked: BoolArray, tokenizer: Any | None, *, brackets: bool) -> Text:
    """`masked`: [T] tokens of turns that a guard has left out."""
    text = Text()
    kinds = np.where(trace.loss_mask, 1, np.where(masked, 2, 0))
    for run in np.split(np.arange(len(trace)), np.flatnonzero(np.diff(kinds)) + 1):
        style, marks = _LOOKS[int(kinds[run[0]])]
        ids = trace.token_ids[run].tolist()
        piece = (
            " ".join(str(i) for i in ids) + " "
            if tokenizer is None
            else tokenizer.decode(ids, skip_special_tokens=False)
        )
        if marks and brackets:
            piece = f"{marks[0]}{piece}{marks[1]}"
        text.append(piece, style=style)
    return text


def _find(store: TrajectoryStore, trajectory_id: str) -> Trajectory:
    found = store.get(trajectory_id)
    if found is None:
        ids = [str(row[0]) for row in store.query("SELECT id FROM trajectories")]
        raise UserError(
            f"no trajectory '{trajectory_id}' in this run.{nearest(trajectory_id, ids)}"
        )
    return found


def _tokenizer(run: RunDirectory) -> Any | None:
    """The run's own; None (token ids are shown) if it has none."""
    files = sorted(run.path.glob("*/tokenizer.json"))
    if not files:
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(files[0]))


def _nearby(path: Path) -> str:
    """The runs beside a directory that is none."""
    parent = path if path.is_dir() else path.parent
    runs = [p.name for p in parent.glob("*") if p.is_dir() and RunDirectory(p).is_used()]
    return f". Runs in {parent}: {', '.join(sorted(runs)[:10])}" if runs else ""


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
