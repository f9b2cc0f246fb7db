"""The engines of a run's teachers, after these were checked against its student; nothing starts here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rlframe.cluster.demand import teacher_part
from rlframe.launch.job import Job
from rlframe.machine import SHARED_MEMORY
from rlframe.teachers.check import check_vocabularies, read_checkpoints
from rlframe.teachers.groups import check_groups, engine_groups
from rlframe.teachers.manifest import TeacherManifest
from rollout.engine.server import EngineSpec
from rollout.teachers.build import Settings, build_pool
from rollout.teachers.pool import TeacherPool


def teacher_engines(job: Job, manifest: TeacherManifest) -> TeacherPool:
    """Engines beside the rollout's; `begin_start` and `wait_started` as for the other parts."""
    config = job.config
    groups = engine_groups(config.teachers)
    check_groups(manifest, groups)
    checkpoints = read_checkpoints(manifest)
    check_vocabularies(manifest, checkpoints, student_tokenizer=job.model.directory)
    staging = _staging_directory(job)
    spec = EngineSpec(
        index=0,
        model_directory="",
        random_weights=False,
        dtype="",
        device=job.device,
        arguments={},
        seed=config.seed,
        num_threads=config.rollout.num_threads,
        log_directory=str(job.directory.logs / "teachers"),
        start_timeout_s=config.rollout.start_timeout_s,
        control_timeout_s=config.sync.timeout_s,
    )
    settings = Settings(
        spec=spec,
        one_host=job.cluster.one_host,
        staging_directory=staging,
        shared_memory_gib=config.teachers.shared_memory_gib,
        vocab_size=job.model.vocab_size,
        tokens_in_flight=config.teachers.tokens_in_flight,
        on_failure=config.teachers.on_failure,
        max_attempts=config.teachers.max_attempts,
        max_restarts=config.teachers.max_restarts,
        hung_after_s=config.rollout.hung_after_s,
        timeout_s=config.rollout.attempt_timeout_s,
    )
    scheduling = {group.name: job.options.get(teacher_part(group.name), []) for group in groups}
    return build_pool(
        manifest,
        checkpoints,
        groups,
        settings,
        scheduling=scheduling,
        on_event=job.view.warn,
    )


def _staging_directory(job: Job) -> str:
    """Of this run alone; each node has its own under the same name. The reaper removes it should the
    driver be killed."""
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    path = tempfile.mkdtemp(prefix=f"rlframe-teachers-{os.getpid()}-", dir=parent)
    job.cluster.reaper.remove(path)
    return path
