"""The teachers of a run: on engines of their own, or on the policy's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from rlframe.config.check_distillation import candidates_of
from rlframe.config.schema import OpdConfig, PpoConfig
from rlframe.distillation.curriculum import CurriculumSource, parse_curriculum
from rlframe.distillation.learning import Teaching
from rlframe.distillation.score_store import MOST_KEPT, ScoreStore
from rlframe.distillation.scoring import Scoring
from rlframe.distillation.signals import Taught
from rlframe.distillation.teacher_choice import TeacherChoice
from rlframe.errors import UserError
from rlframe.interfaces import TaskSource
from rlframe.launch.comparison import best_by_domain, read_comparison
from rlframe.launch.job import Job
from rlframe.launch.teachers import teacher_engines
from rlframe.producer import Listener
from rlframe.teachers.check import run_domains
from rlframe.teachers.manifest import Teacher, TeacherManifest, read_manifest
from rlframe.teaching import TeacherService
from rlframe.types import Trajectory

SCORES = "scores.sqlite"


@dataclass(frozen=True, slots=True)
class Teachers:
    """What a run knows of its teachers before anything starts."""

    manifest: TeacherManifest
    best: dict[str, str] = field(default_factory=dict)
    """By domain, filled when the comparison is made (`several_teachers=best`)."""

    @property
    def choice(self) -> TeacherChoice:
        return TeacherChoice(self.manifest, self.best)


def teachers_of(job: Job, algorithm: OpdConfig) -> Teachers:
    """UserError for a domain that nobody teaches."""
    manifest = read_manifest(job.config.teachers.manifest)
    compared = read_comparison(job.directory.path)
    for name in manifest.check_domains(run_domains(job.source)):
        job.view.warn(f"teacher {name} has no domain of this run: it is never asked")
    if algorithm.teachers_on == "ranks":
        rank_teachers(manifest)
    best = {}
    if algorithm.several_teachers == "best" and compared:
        best = best_by_domain(manifest, compared)
    return Teachers(manifest, best)


def rank_teachers(manifest: TeacherManifest) -> tuple[Teacher, ...]:
    """All of them, in order. UserError for one that is served elsewhere."""
    for teacher in manifest.teachers:
        if not teacher.checkpoint:
            raise UserError(
                f"{manifest.path}: teacher '{teacher.name}' has a url; algorithm.teachers_on=ranks needs its "
                "checkpoint"
            )
    return manifest.teachers


@dataclass(frozen=True, slots=True)
class RankTeachers:
    """Only says whose weights read what: the ranks do it. Satisfies `rlframe.distillation.learning.ScoreSource`."""

    choice: TeacherChoice

    def scores(self, trajectories: Sequence[Trajectory]) -> list[Taught]:
        return [
            Taught(self.choice.of(trajectory), None)
            for trajectory in trajectories
            for _ in trajectory.traces
        ]

    def metrics(self) -> dict[str, float]:
        return {}


def service_of(job: Job, teachers: Teachers) -> Any:
    """The teachers' engines, not started yet; None where the policy's ranks hold the teachers."""
    algorithm = job.config.algorithm
    if algorithm.teachers_on == "ranks":
        return None
    return teacher_engines(job, teachers.manifest)


def teaching_of(
    job: Job,
    algorithm: OpdConfig,
    teachers: Teachers,
    service: TeacherService | None,
    stack: ExitStack,
) -> tuple[Teaching, Listener | None]:
    """The learner's side, and what hears of finished trajectories. `service`: of the teachers' engines, which are up."""
    if algorithm.teachers_on == "ranks":
        names = {t.name: i for i, t in enumerate(rank_teachers(teachers.manifest))}
        return Teaching(algorithm, RankTeachers(teachers.choice), names), None
    assert service is not None
    kept = stack.enter_context(closing(ScoreStore(job.directory.path / SCORES)))
    scoring = Scoring(
        service,
        kept,
        teachers.choice.of,
        top_k=candidates_of(algorithm, vocab_size=job.model.vocab_size),
    )
    stack.callback(scoring.close)
    scoring.start()
    return Teaching(algorithm, scoring), scoring


def with_curriculum(source: TaskSource, algorithm: PpoConfig) -> TaskSource:
    """The run's tasks, in the order of the curriculum where there is one."""
    if not isinstance(algorithm, OpdConfig):
        return source
    curriculum = parse_curriculum(algorithm.curriculum)
    if curriculum is None:
        return source
    tasks = max(1, algorithm.batch_trajectories // algorithm.rollouts_per_task)
    return CurriculumSource(source, curriculum, tasks_per_step=tasks)


@dataclass(frozen=True, slots=True)
class StoredScores:
    """What a run that is replayed had been told. Satisfies `rlframe.distillation.learning.ScoreSource`."""

    kept: ScoreStore
    top_k: int

    def scores(self, trajectories: Sequence[Trajectory]) -> list[Taught]:
        """UserError where the store has none: wide candidates are not kept."""
        found: list[Taught] = []
        for trajectory in trajectories:
            own = self.kept.get(trajectory, top_k=self.top_k)
            if own is None:
                raise UserError(
                    f"the teachers' scores of {trajectory.id} are not in {SCORES}: a step whose teachers gave more "
                    f"than {MOST_KEPT} candidates a token can't be replayed without them"
                )
            found += own
        return found

    def metrics(self) -> dict[str, float]:
        return {}


def replayed_teaching(job: Job, algorithm: PpoConfig, stack: ExitStack) -> Teaching | None:
    """For `rlframe replay`: the ranks' teachers read again, engines' scores come from the run."""
    if not isinstance(algorithm, OpdConfig):
        return None
    teachers = teachers_of(job, algorithm)
    if algorithm.teachers_on == "ranks":
        names = {t.name: i for i, t in enumerate(rank_teachers(teachers.manifest))}
        return Teaching(algorithm, RankTeachers(teachers.choice), names)
    kept = stack.enter_context(closing(ScoreStore(job.directory.path / SCORES)))
    return Teaching(
        algorithm, StoredScores(kept, candidates_of(algorithm, vocab_size=job.model.vocab_size))
    )
