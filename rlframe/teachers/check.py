"""Teachers against the run, before anything is claimed: readable, of the student's vocabulary, with room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlframe.config.schema.teachers import TeachersConfig
from rlframe.errors import UserError
from rlframe.interfaces import TaskSource
from rlframe.machine import GIB, list_gpus, memory_gib
from rlframe.teachers.checkpoints import TeacherCheckpoint, read_checkpoint
from rlframe.teachers.groups import EngineGroup, check_groups, engine_groups
from rlframe.teachers.manifest import TeacherManifest, read_manifest
from rlframe.teachers.vocabulary import check_vocabulary, read_vocabulary

DOMAIN_SAMPLE = 1000
"""Training tasks whose domains are looked at: a source does not list its domains."""


def read_checkpoints(manifest: TeacherManifest) -> dict[str, TeacherCheckpoint]:
    """By name, of all teachers that are no URL. UserError where one is not a whole checkpoint."""
    return {
        teacher.name: read_checkpoint(teacher, where=f"{manifest.path}: teacher '{teacher.name}'")
        for teacher in manifest.teachers
        if teacher.checkpoint
    }


def check_vocabularies(
    manifest: TeacherManifest,
    checkpoints: Mapping[str, TeacherCheckpoint],
    *,
    student_tokenizer: Path,
) -> None:
    """Each teacher's tokens against the student's, one by one. A URL is compared by its `tokenizer`."""
    student = read_vocabulary(student_tokenizer, where="model.tokenizer")
    for teacher in manifest.teachers:
        where = f"{manifest.path}: teacher '{teacher.name}'"
        if teacher.url and not teacher.tokenizer:
            raise UserError(
                f"{where}: tokenizer is missing: nobody can tell by its url whether its token ids are the "
                "student's. Give the directory of its tokenizer"
            )
        directory = Path(teacher.checkpoint or teacher.tokenizer).expanduser()
        check_vocabulary(student, read_vocabulary(directory, where=where), where=where)
        if teacher.name in checkpoints and checkpoints[teacher.name].vocab_size <= max(student):
            raise UserError(
                f"{where}: its model has vocab_size={checkpoints[teacher.name].vocab_size}, the student's "
                f"token ids go up to {max(student)}"
            )


def check_lengths(
    manifest: TeacherManifest, checkpoints: Mapping[str, TeacherCheckpoint], *, max_tokens: int
) -> None:
    """The longest trace fits into every teacher's context."""
    for name, checkpoint in checkpoints.items():
        if 0 < checkpoint.positions < max_tokens:
            raise UserError(
                f"{manifest.path}: teacher '{name}' reads at most {checkpoint.positions} tokens "
                f"(max_position_embeddings), a trace may have rollout.max_context_tokens={max_tokens}"
            )


def check_memory(
    manifest: TeacherManifest,
    checkpoints: Mapping[str, TeacherCheckpoint],
    groups: Sequence[EngineGroup],
    *,
    free_gib: float,
    gpu_gib: float,
) -> None:
    """Engines hold one teacher each. `free_gib` of the machine, which counts where `gpu_gib` (of one
    GPU) is 0. Copies at hand are no demand: as many are kept as fit."""
    needed = 0.0
    for group in groups:
        members = [
            t.name for t in manifest.teachers if t.checkpoint and t.engine_group == group.name
        ]
        if not members:
            continue
        largest = max(members, key=lambda name: checkpoints[name].num_bytes)
        gib = checkpoints[largest].num_bytes / GIB
        needed += gib * group.engines
        if gpu_gib and gib > gpu_gib * group.gpus_per_engine:
            raise UserError(
                f"{manifest.path}: teacher '{largest}' has {gib:.1f} GiB of weights, an engine of the group "
                f"'{group.name}' has {group.gpus_per_engine:g} GPUs of {gpu_gib:.0f} GiB: raise its "
                "gpus_per_engine and engine_args.tp_size"
            )
    if not gpu_gib and needed > free_gib:
        raise UserError(
            f"{manifest.path}: the teachers' engines would hold {needed:.1f} GiB of weights, of which "
            f"{free_gib:.1f} GiB are free: lower teachers.engines, or use smaller teachers"
        )


def run_domains(source: TaskSource) -> list[str]:
    """The domains of held-out tasks and of the first training tasks."""
    tasks: Iterable[Any] = [*source.held_out_tasks(), *map(source.train_task, range(DOMAIN_SAMPLE))]
    return sorted({task.domain for task in tasks})


def check_teachers_config(
    config: TeachersConfig,
    *,
    student_tokenizer: Path | None,
    max_tokens: int,
    here: bool,
    gpus: bool,
) -> None:
    """What can be told from files alone; nothing where there are no teachers. `student_tokenizer` is
    None where it is yet to be built. `here`: engines run on this machine, `gpus`: on its GPUs."""
    if not config.manifest:
        return
    manifest = read_manifest(config.manifest)
    groups = engine_groups(config)
    check_groups(manifest, groups)
    checkpoints = read_checkpoints(manifest)
    check_lengths(manifest, checkpoints, max_tokens=max_tokens)
    if student_tokenizer is not None:
        check_vocabularies(manifest, checkpoints, student_tokenizer=student_tokenizer)
    if here:
        memory = [gpu.memory_gib for gpu in list_gpus()] if gpus else []
        gpu_gib = min(memory, default=0.0)
        check_memory(manifest, checkpoints, groups, free_gib=memory_gib()[0], gpu_gib=gpu_gib)
