"""A PPO run: start the parts, go on from the latest checkpoint, loop, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlframe.bad_steps import BadSteps
from rlframe.checkpoints import Checkpoint
from rlframe.config.schema import OpdConfig, PpoConfig
from rlframe.distillation.learning import Teaching
from rlframe.intake import Intake
from rlframe.interfaces import RoleTrainer
from rlframe.launch.background import background_of, evaluators_of
from rlframe.launch.job import Job
from rlframe.launch.parts import (
    learner_of,
    publisher,
    roles_of,
    rollouts_of,
    weights_directory,
)
from rlframe.launch.report import report
from rlframe.launch.teaching import (
    Teachers,
    service_of,
    teachers_of,
    teaching_of,
    with_curriculum,
)
from rlframe.launch.watch import PpoWatcher
from rlframe.loop import Loop
from rlframe.metrics import Metrics
from rlframe.producer import Listener, Producer
from rlframe.store import TrajectoryStore
from rlframe.teaching import TeacherService
from rollout.service import RolloutPool


class Part(Protocol):
    """What runs in processes of its own."""

    def begin_start(self) -> None: ...
    def wait_started(self, progress: Callable[[str], None]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Running:
    """A run whose parts are up and whose engines serve `first_step`'s weights."""

    loop: Loop
    watcher: PpoWatcher
    metrics: Metrics
    policy: RoleTrainer
    first_step: int
    producer: Producer
    rollouts: RolloutPool
    weights_directory: str
    """Where what engines read may lie."""
    teachers: Teachers | None


def run(job: Job) -> int:
    """Returns the exit code: 1 where the held-out reward did not rise as `logging` asks for."""
    with start(job) as running:
        running.watcher.evaluate(running.first_step)
        running.loop.run(first_step=running.first_step, steps=job.config.steps)
        running.watcher.finish()
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
    teachers = teachers_of(job, algorithm) if isinstance(algorithm, OpdConfig) else None
    with ExitStack() as stack:
        store = stack.enter_context(closing(TrajectoryStore(job.directory.trajectories)))
        metrics = stack.enter_context(closing(job.metrics(after_step=first_step)))
        directory = stack.enter_context(weights_directory(job))
        evaluators = evaluators_of(job)
        policy, critic, rollouts, service = _start_parts(
            job, algorithm, teachers, evaluators, stack
        )
        if checkpoint is not None:
            job.view.say(f"going on after step {checkpoint.step}")
            load(checkpoint, policy, critic)
        publish = publisher(job, policy, directory)
        rollouts.sync(publish(first_step))
        teaching, listener = _teaching(job, algorithm, teachers, service, stack)
        bad_steps = BadSteps(algorithm.bad_step, algorithm.max_bad_steps, job.directory.bad_steps)
        learner = learner_of(job, algorithm, policy, critic, bad_steps, teaching)
        producer = Producer(
            rollouts,
            store,
            with_curriculum(job.source, algorithm),
            batch_trajectories=algorithm.batch_trajectories,
            max_staleness=algorithm.max_staleness,
            version=first_step,
            intake=Intake(_longest_trace(job)),
            max_lost_share=job.config.rollout.max_lost_share,
            over_admission=job.config.rollout.over_admission,
            rollouts_per_task=algorithm.rollouts_per_task,
            on_progress=job.view.progress,
            listener=listener,
        )
        stack.callback(producer.close)
        producer.start()
        watcher = PpoWatcher(
            job.config,
            job.source,
            producer,
            metrics,
            job.checkpoints,
            policy,
            critic,
            measure=learner.divergence if teaching else lambda attempts: {},
            background=background_of(job, evaluators, policy, directory, stack),
            warn=job.view.warn,
        )
        loop = Loop(learner, rollouts, producer, metrics, watcher, publish)
        yield Running(
            loop, watcher, metrics, policy, first_step, producer, rollouts, directory, teachers
        )


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
    layouts = (trainer.policy.layout, trainer.critic.layout)
    return min(layout.capacity(trainer.max_tokens_per_micro_batch) for layout in layouts)


def _teaching(
    job: Job,
    algorithm: PpoConfig,
    teachers: Teachers | None,
    service: TeacherService | None,
    stack: ExitStack,
) -> tuple[Teaching | None, Listener | None]:
    if teachers is None or not isinstance(algorithm, OpdConfig):
        return None, None
    return teaching_of(job, algorithm, teachers, service, stack)


def _start_parts(
    job: Job,
    algorithm: PpoConfig,
    teachers: Teachers | None,
    evaluators: RolloutPool | None,
    stack: ExitStack,
) -> tuple[RoleTrainer, RoleTrainer | None, RolloutPool, TeacherService | None]:
    """Engines and ranks start at the same time: all of them are mostly imports."""
    policy, critic = roles_of(job, algorithm)
    rollouts = rollouts_of(job)
    service = service_of(job, teachers) if teachers is not None else None
    said: Callable[[str], None] = job.view.say
    said("starting engines and " + ("policy" if critic is None else "policy and critic"))
    parts: list[Part] = [policy, rollouts]
    parts[1:1] = [critic] if critic is not None else []
    parts += [part for part in (service, evaluators) if part is not None]
    for part in reversed(parts):
        stack.callback(part.close)
        part.begin_start()
    for part in parts:
        part.wait_started(said)
    return policy, critic, rollouts, service
