"""A PPO run: start the parts, go on from the latest checkpoint, loop, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from rlframe.bad_steps import BadSteps
from rlframe.checkpoints import Checkpoint
from rlframe.config.schema import PpoConfig
from rlframe.intake import Intake
from rlframe.interfaces import RoleTrainer
from rlframe.launch.job import Job
from rlframe.launch.parts import (
    learner_of,
    publisher,
    roles_of,
    rollouts_of,
    weights_directory,
)
from rlframe.launch.report import report
from rlframe.launch.watch import PpoWatcher
from rlframe.loop import Loop
from rlframe.metrics import Metrics
from rlframe.producer import Producer
from rlframe.store import TrajectoryStore
from rollout.service import RolloutPool
from trainer.ranks.role import RankedRole


@dataclass(frozen=True, slots=True)
class Running:
    """A run whose parts are up and whose engines serve `first_step`'s weights."""

    loop: Loop
    watcher: PpoWatcher
    metrics: Metrics
    policy: RoleTrainer
    first_step: int


def run(job: Job) -> int:
    """Returns the exit code: 1 where the held-out reward did not rise as `logging` asks for."""
    with start(job) as running:
        running.watcher.evaluate(running.first_step)
        running.loop.run(first_step=running.first_step, steps=job.config.steps)
        job.view.phase("export")
        running.policy.export_hf(str(job.directory.hf)).result()
        return report(job, running.metrics)


@contextmanager
def start(job: Job) -> Iterator[Running]:
    """Everything up, from the latest checkpoint if there is one; all of it ends with the block."""
    algorithm = job.config.algorithm
    assert isinstance(algorithm, PpoConfig)
    checkpoint = job.checkpoints.latest()
    first_step = checkpoint.step if checkpoint else 0
    with ExitStack() as stack:
        store = stack.enter_context(closing(TrajectoryStore(job.directory.trajectories)))
        metrics = stack.enter_context(closing(job.metrics(after_step=first_step)))
        directory = stack.enter_context(weights_directory(job))
        policy, critic, rollouts = _start_parts(job, algorithm, stack)
        if checkpoint is not None:
            job.view.say(f"going on after step {checkpoint.step}")
            load(checkpoint, policy, critic)
        publish = publisher(job, policy, directory)
        rollouts.sync(publish(first_step))
        producer = Producer(
            rollouts,
            store,
            job.source,
            batch_trajectories=algorithm.batch_trajectories,
            max_staleness=algorithm.max_staleness,
            version=first_step,
            intake=Intake(_longest_trace(job)),
            max_lost_share=job.config.rollout.max_lost_share,
            over_admission=job.config.rollout.over_admission,
            rollouts_per_task=algorithm.rollouts_per_task,
            on_progress=job.view.progress,
        )
        stack.callback(producer.close)
        producer.start()
        watcher = PpoWatcher(
            job.config, job.source, producer, metrics, job.checkpoints, policy, critic
        )
        bad_steps = BadSteps(algorithm.bad_step, algorithm.max_bad_steps, job.directory.bad_steps)
        learner = learner_of(job, algorithm, policy, critic, bad_steps)
        loop = Loop(learner, rollouts, producer, metrics, watcher, publish)
        yield Running(loop, watcher, metrics, policy, first_step)


def load(checkpoint: Checkpoint, policy: RoleTrainer, critic: RoleTrainer | None) -> None:
    """Both roles at the same time."""
    loading = [policy.load(checkpoint.role("policy"))]
    if critic is not None:
        loading.append(critic.load(checkpoint.role("critic")))
    for pending in loading:
        pending.result()


def _longest_trace(job: Job) -> int:
    """What a micro-batch of every role holds."""
    trainer = job.config.trainer
    context = min(trainer.policy.layout.context, trainer.critic.layout.context)
    return trainer.max_tokens_per_micro_batch * context


def _start_parts(
    job: Job, algorithm: PpoConfig, stack: ExitStack
) -> tuple[RoleTrainer, RoleTrainer | None, RolloutPool]:
    """Engines and ranks start at the same time: all of them are mostly imports."""
    policy, critic = roles_of(job, algorithm)
    rollouts = rollouts_of(job)
    said: Callable[[str], None] = job.view.say
    said("starting engines and " + ("policy" if critic is None else "policy and critic"))
    roles: list[RankedRole] = [policy] if critic is None else [policy, critic]
    parts: list[RankedRole | RolloutPool] = [*roles, rollouts]
    for part in reversed(parts):
        stack.callback(part.close)
        part.begin_start()
    for part in parts:
        part.wait_started(said)
    return policy, critic, rollouts
