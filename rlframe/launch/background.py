"""Evaluation in the background of a run (`rollout.eval_engines`), from the configuration."""

from __future__ import annotations

from contextlib import ExitStack, closing

from rlframe.background_evaluation import BackgroundEvaluation
from rlframe.cluster.demand import EVAL_ENGINE
from rlframe.interfaces import RoleTrainer
from rlframe.launch.job import Job
from rlframe.launch.parts import rollouts_of
from rlframe.store import TrajectoryStore
from rollout.service import RolloutPool


def evaluators_of(job: Job) -> RolloutPool | None:
    """Engines and a worker for held-out attempts alone, where the run has such."""
    return rollouts_of(job, part=EVAL_ENGINE) if EVAL_ENGINE in job.options else None


def background_of(
    job: Job,
    evaluators: RolloutPool | None,
    policy: RoleTrainer,
    directory: str,
    stack: ExitStack,
) -> BackgroundEvaluation | None:
    """Collecting until `stack` ends. Its weights lie apart in `directory`, where no step rewrites them: an
    engine that must be started again finds the version that it is to serve."""
    if evaluators is None:
        return None
    store = stack.enter_context(closing(TrajectoryStore(job.directory.evaluations)))
    background = BackgroundEvaluation(
        evaluators,
        store,
        job.source.held_out_tasks(),
        lambda version: policy.export(version, f"{directory}/evaluation").result(),
        known=[str(row[0]) for row in store.query("SELECT id FROM trajectories")],
    )
    stack.callback(background.close)
    background.start()
    return background
