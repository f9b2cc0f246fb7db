"""`rlframe replay RUN STEP`: one step's training again, from the store, without engines.

Goes on from the latest checkpoint before the step (or from the weights that the run began with) through the
recorded batches, as a resumed run does, and shows what the step measured beside what the run had logged.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlframe.bad_steps import BadSteps
from rlframe.config.saved import load_saved_config
from rlframe.config.schema import PpoConfig
from rlframe.errors import UserError
from rlframe.launch.job import Job, settle
from rlframe.launch.parts import learner_of, roles_of
from rlframe.launch.ppo import load
from rlframe.launch.teaching import replayed_teaching
from rlframe.metrics import STEP, Metrics, read
from rlframe.run_directory import RunDirectory
from rlframe.store import TrajectoryStore
from rlframe.types import Trajectory

NOT_TRAINED = ("time/", "throughput/", "sync/", "attempts/")
"""Groups of metrics that are not of the learning itself."""


def run_replay(run_dir: str, step: int) -> int:
    """0, also where the figures differ: they are shown. UserError where the step can't be run again."""
    directory = RunDirectory(run_dir)
    if not directory.trajectories.exists():
        raise UserError(f"{directory.path} holds no PPO run: it has no trajectories.sqlite")
    config = load_saved_config(directory.config)
    algorithm = config.algorithm
    if not isinstance(algorithm, PpoConfig):
        raise UserError(f"{directory.path} is no PPO run: its algorithm is '{algorithm.name}'")
    config.run_dir = str(directory.path)
    with closing(TrajectoryStore(directory.trajectories, read_only=True)) as store:
        recorded = recorded_steps(store)
        if step < 1 or step not in recorded:
            last = max(recorded, default=0)
            raise UserError(f"step {step} was not recorded; this run has steps 1 to {last}")
        with settle(config, again=True) as job:
            replayed, reasons = _replay(job, algorithm, store, step)
    logged = next(
        (line for line in read(directory.metrics) if (line["event"], line["step"]) == (STEP, step)),
        {},
    )
    show(step, replayed, logged, reasons)
    return 0


def recorded_steps(store: TrajectoryStore) -> set[int]:
    """As the run counts them: the first is 1."""
    return {step + 1 for step in store.steps().values()}


def _replay(
    job: Job, algorithm: PpoConfig, store: TrajectoryStore, step: int
) -> tuple[Mapping[str, float], list[str]]:
    """The step's figures, and why it was a bad step if it was one."""
    before = [c for c in job.checkpoints.complete() if c.step < step]
    first = before[-1].step if before else 0
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        metrics = stack.enter_context(closing(Metrics(scratch / "metrics.jsonl")))
        policy, critic = roles_of(job, algorithm)
        roles = [policy] if critic is None else [policy, critic]
        for role in roles:
            stack.callback(role.close)
            role.begin_start()
        for role in roles:
            role.wait_started(job.view.say)
        if before:
            load(before[-1], policy, critic)
        job.view.say(f"from the weights after step {first}")
        notes = BadSteps("skip", max_in_a_row=step, directory=scratch)
        teaching = replayed_teaching(job, algorithm, stack)
        learner = learner_of(job, algorithm, policy, critic, notes, teaching)
        for number in range(first, step):
            measured = learner.learn(_batch(store, number), number, metrics)
            metrics.log(number + 1, measured)
            job.view.say(f"step {number + 1} again")
        return measured, notes.last_reasons


def _batch(store: TrajectoryStore, number: int) -> list[Trajectory]:
    batch = store.batch(number)
    if batch is None:
        raise UserError(f"step {number + 1} was not recorded: its batch is not in the store")
    return batch


def show(
    step: int, replayed: Mapping[str, float], logged: Mapping[str, float], reasons: list[str]
) -> None:
    """A table of both, the largest difference, and what was wrong."""
    table = Table("figure", "logged", "again", box=None, pad_edge=False)
    differing = []
    for name, value in replayed.items():
        if name.startswith(NOT_TRAINED):
            continue
        there = logged.get(name)
        if there is not None and not _same(there, value):
            differing.append(name)
        said = "-" if there is None else f"{there:.6g}"
        table.add_row(name, said, f"{value:.6g}")
    console = Console()
    console.print(table)
    if not logged:
        console.print(f"step {step} was not logged: the run stopped in it")
    elif differing:
        console.print(f"{len(differing)} figures differ: {', '.join(differing)}", highlight=False)
    else:
        console.print(f"step {step} again: every figure is the same")
    for reason in reasons:
        console.print(f"bad step: {reason}", highlight=False)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
