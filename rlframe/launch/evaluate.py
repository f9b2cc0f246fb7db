"""`rlframe eval`: a checkpoint on engines, attempts at every task, a result. No rank starts.

Every attempt is in the store when it has ended: the same command, started again after whatever ended it, makes
what is missing, and made whole it only reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlframe.cluster.demand import engines_of
from rlframe.config.schema import EvalConfig, RunConfig
from rlframe.errors import RunError
from rlframe.evaluation import record, result
from rlframe.evaluation.attempts import Plan, plan, slots_of
from rlframe.evaluation.drive import drive
from rlframe.evaluation.measured import Measured, measure
from rlframe.evaluation.plot import plot_results
from rlframe.evaluation.table import result_table
from rlframe.installed import versions
from rlframe.launch.black_box import black_box_spec
from rlframe.launch.evaluation_identity import identify, source_of
from rlframe.launch.job import Job, settle
from rlframe.launch.parts import rollouts_of
from rlframe.launch.run import run_settled
from rlframe.run_directory import RunDirectory
from rlframe.store import TrajectoryStore
from rlframe.types import Status, Task

LOST_TOO_MUCH = 1


def run_evaluation(config: RunConfig, *, console: Console | None = None) -> int:
    """Returns the exit code: 1 where more was lost than `eval.max_lost_share` allows."""
    out = console or Console(highlight=False)
    source = source_of(config)
    tasks = source.held_out_tasks()
    identity = identify(config, tasks)
    directory = RunDirectory(config.run_dir)
    record.begin_or_go_on(directory.path, identity)
    planned = _planned(config, directory, tasks)
    if planned.missing:
        code = run_settled(
            config,
            partial(settle, config, demand=engines_of),
            partial(_make, out=out, tasks=tasks),
        )
        if code:
            return code
    else:
        out.print(f"nothing is missing in {directory.path}: its result again", markup=False)
    return _report(config, directory, identity, tasks, out)


def _planned(config: RunConfig, directory: RunDirectory, tasks: Sequence[Task]) -> Plan:
    slots = slots_of(tasks, config.eval.repeats)
    if not directory.trajectories.exists():
        return plan(slots, [])
    with closing(TrajectoryStore(directory.trajectories, read_only=True)) as store:
        return plan(slots, _stored(store))


def _stored(store: TrajectoryStore) -> list[tuple[str, Status]]:
    rows = store.query("SELECT id, status FROM trajectories")
    return [(str(attempt_id), Status(str(status))) for attempt_id, status in rows]


def _make(job: Job, *, out: Console, tasks: Sequence[Task]) -> int:
    """Every attempt that is missing."""
    with closing(TrajectoryStore(job.directory.trajectories)) as store:
        planned = plan(slots_of(tasks, job.config.eval.repeats), _stored(store))
        rollouts = rollouts_of(job)
        try:
            rollouts.begin_start()
            rollouts.wait_started(job.view.say)
            record.note_session(job.directory.path, time.time())
            with _shown(out, planned) as progress:
                drive(rollouts, store, planned, window=_window(job.config), progress=progress)
        finally:
            rollouts.close()
    return 0


def _window(config: RunConfig) -> int:
    """So many that every place of every worker has a next one waiting."""
    return 2 * config.rollout.max_concurrency


@contextmanager
def _shown(out: Console, planned: Plan) -> Iterator[Any]:
    """A bar on a terminal, a line for each tenth elsewhere."""
    done, total = len(planned.standing), planned.slots
    if out.is_terminal:
        columns = (
            TextColumn("attempts"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=out) as bar:
            task = bar.add_task("attempts", total=total, completed=done)
            yield lambda count: bar.advance(task, count)
        return
    said = done * 10 // total
    out.print(f"attempts: {done} of {total} are there already" if done else f"attempts: {total}")

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if done * 10 // total > said:
            said = done * 10 // total
            out.print(f"attempts: {done} of {total}")

    yield advance


def _report(
    config: RunConfig,
    directory: RunDirectory,
    identity: record.Identity,
    tasks: Sequence[Task],
    out: Console,
) -> int:
    """Reads the store; writes eval.json and eval.png; prints the table."""
    with closing(TrajectoryStore(directory.trajectories, read_only=True)) as store:
        planned = plan(slots_of(tasks, config.eval.repeats), _stored(store))
        attempts = list(_measured(store, planned))
        ended = [float(str(row[0])) for row in store.query("SELECT created_s FROM trajectories")]
    found = result.versions(attempts)
    if len(found) > 1:
        raise RunError(f"attempts have tokens of several weight versions: {found}")
    rules = _rules(config)
    wall_s = record.engine_seconds(directory.path, ended)
    whole = {
        "format": result.FORMAT,
        "preset": config.eval.preset,
        "rlframe": versions().get("rlframe", ""),
        "sglang": versions().get("sglang", ""),
        **identity.described(),
        "weight_version": found[0] if found else None,
        "engine_seconds": round(wall_s, 3),
        **result.summarise(attempts, rules, wall_s=wall_s),
        "tasks": result.per_task(attempts, rules),
    }
    record.write_result(directory.path, whole)
    written = record.read_result(directory.path)
    plot_results({config.name: written}, directory.path / "eval.png", title=config.name)
    out.print(result_table(written))
    out.print(f"result   {directory.path / record.RESULT}", markup=False, soft_wrap=True)
    lost = whole["total"]["infra_failure_rate"]
    if lost > config.eval.max_lost_share:
        out.print(
            f"{lost:.1%} of the attempts were lost by our side, above eval.max_lost_share="
            f"{config.eval.max_lost_share:g}: the same command makes them again",
            markup=False,
            style="yellow",
        )
        return LOST_TOO_MUCH
    return 0


def _measured(store: TrajectoryStore, planned: Plan) -> Iterator[Measured]:
    """What stands, and the last try of each that was lost."""
    for attempt_id, slot in {**planned.standing, **planned.lost}.items():
        trajectory = store.get(attempt_id)
        assert trajectory is not None
        yield measure(trajectory, slot)


def _rules(config: RunConfig) -> result.Rules:
    chosen: EvalConfig = config.eval
    return result.Rules(
        repeats=chosen.repeats,
        solved_from=chosen.solved_from,
        task_faults=chosen.task_faults,
        prices=result.Prices(
            prompt=chosen.price_prompt,
            sampled=chosen.price_sampled,
            engine_hour=chosen.price_engine_hour,
            currency=chosen.currency,
        ),
        engines=config.rollout.engines,
    )


def show_plan(config: RunConfig) -> Iterator[str]:
    """For `--dry-run`: what would be made, with nothing claimed."""
    from envs.source_check import check_source

    source = source_of(config)
    check_source(source, name=config.env.name, mode=config.rollout.mode)
    if config.rollout.mode == "black_box":
        black_box_spec(config.rollout).check()
    tasks = source.held_out_tasks()
    identity = identify(config, tasks).described()
    directory = RunDirectory(config.run_dir)
    planned = _planned(config, directory, tasks)
    rollout = asdict(config.rollout)
    yield f"plan: evaluate {config.model.path} ({identity['weights']['checksum'][:12]})"
    for name, suite in config.env.args["parts"].items():
        count = sum(task.id.startswith(f"{name}/") for task in tasks)
        yield f"  suite     {name}: {suite['name']}, {count} tasks x {config.eval.repeats}"
    yield (
        f"  sampling  {rollout['sampling']}; {config.rollout.max_turns} turns, "
        f"{config.rollout.max_context_tokens:,} tokens of context"
    )
    yield f"  pinned    {len(identity['pinned'])} keys, hash {identity['pinned_hash']}"
    yield f"  attempts  {len(planned.missing)} to make, {len(planned.standing)} there already"
    yield f"  files     {Path(config.run_dir)}"
    yield "nothing was started; the same command without --dry-run runs it"
