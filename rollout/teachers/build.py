"""From a manifest to a pool of engines; nothing starts here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlframe.errors import UserError
from rlframe.machine import GIB
from rlframe.teachers.checkpoints import TeacherCheckpoint
from rlframe.teachers.groups import EngineGroup
from rlframe.teachers.manifest import Teacher, TeacherManifest
from rollout.engine.pulse import Pulse
from rollout.engine.server import EngineSpec, Keys
from rollout.teachers.engine import CONCURRENCY, ServedTeacher, TeacherEngine
from rollout.teachers.pool import Policy, TeacherPool
from rollout.teachers.queues import Queues
from rollout.teachers.slot import Group, Slot

CALLS_AT_ONCE = 2
"""Of one engine: while it answers one, it has the next already."""
LOAD_BYTES_PER_S = 2e9
RESTART_S = 60.0
TOKENS_PER_S = 5000.0
"""First guesses of a swap, a start and a rate; what is measured replaces them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not depend on the teachers."""

    spec: EngineSpec
    """Of every engine, but for index, model, dtype and arguments."""
    one_host: bool
    staging_directory: str
    """The run's own, in shared memory; removed at the end."""
    shared_memory_gib: float
    vocab_size: int
    tokens_in_flight: int
    on_failure: str
    max_attempts: int
    max_restarts: int
    hung_after_s: float
    timeout_s: float
    keys: Keys = field(default_factory=Keys)


def build_pool(
    manifest: TeacherManifest,
    checkpoints: Mapping[str, TeacherCheckpoint],
    groups: Sequence[EngineGroup],
    settings: Settings,
    *,
    scheduling: Mapping[str, Sequence[Mapping[str, Any]]],
    on_event: Callable[[str], None] = lambda text: None,
) -> TeacherPool:
    """`scheduling`: Ray actor options by group, one an engine. Nothing is checked again here."""
    built = [
        _engines(group, manifest, checkpoints, settings, scheduling[group.name])
        for group in groups
        if any(t.checkpoint and t.engine_group == group.name for t in manifest.teachers)
    ]
    built += [_served(teacher, settings) for teacher in manifest.teachers if teacher.url]
    sizes = {name: checkpoint.num_bytes for name, checkpoint in checkpoints.items()}
    policy = Policy(
        vocab_size=settings.vocab_size,
        tokens_in_flight=settings.tokens_in_flight,
        on_failure=settings.on_failure,
        max_attempts=settings.max_attempts,
        max_restarts=settings.max_restarts,
        keep=partial(kept_teachers, sizes, settings.shared_memory_gib),
    )
    remove = partial(shutil.rmtree, settings.staging_directory, ignore_errors=True)
    return TeacherPool(built, policy, on_event=on_event, on_close=remove)


def kept_teachers(
    sizes: Mapping[str, int], shared_memory_gib: float, node: str, free_bytes: int
) -> frozenset[str]:
    """The first ones that fit into the node's share; those after them are read from their files."""
    budget = shared_memory_gib * GIB if shared_memory_gib else free_bytes / 2
    kept, used = set(), 0
    for name, size in sizes.items():
        if used + size <= min(budget, free_bytes):
            kept.add(name)
            used += size
    return frozenset(kept)


def _engines(
    group: EngineGroup,
    manifest: TeacherManifest,
    checkpoints: Mapping[str, TeacherCheckpoint],
    settings: Settings,
    scheduling: Sequence[Mapping[str, Any]],
) -> Group:
    names = tuple(
        t.name for t in manifest.teachers if t.checkpoint and t.engine_group == group.name
    )
    own = {name: checkpoints[name] for name in names}
    slots = []
    for index in range(group.engines):
        log_directory = str(Path(settings.spec.log_directory) / group.name)
        spec = replace(
            settings.spec,
            index=index,
            arguments=dict(group.engine_args),
            random_weights=False,
            log_directory=log_directory,
        )
        create = partial(_create, spec, settings.keys, own, settings, dict(scheduling[index]))
        pulse = Pulse(settings.hung_after_s)
        slots.append(Slot(f"{group.name}-{index}", create, CALLS_AT_ONCE, pulse))
    largest = max(checkpoint.num_bytes for checkpoint in own.values())
    return Group(
        name=group.name,
        teachers=names,
        slots=slots,
        queues=Queues(TOKENS_PER_S),
        architectures={name: checkpoint.architecture for name, checkpoint in own.items()},
        swap_s=largest / LOAD_BYTES_PER_S,
        restart_s=RESTART_S,
    )


def _create(
    spec: EngineSpec,
    keys: Keys,
    checkpoints: Mapping[str, TeacherCheckpoint],
    settings: Settings,
    options: dict[str, Any],
) -> Any:
    import ray

    remote = ray.remote(TeacherEngine).options(max_concurrency=CONCURRENCY, **options)
    return remote.remote(
        spec,
        keys,
        one_host=settings.one_host,
        checkpoints=checkpoints,
        staging_directory=settings.staging_directory,
        vocab_size=settings.vocab_size,
        timeout_s=settings.timeout_s,
    )


def _served(teacher: Teacher, settings: Settings) -> Group:
    key = os.environ.get(teacher.api_key_variable, "") if teacher.api_key_variable else ""
    if teacher.api_key_variable and not key:
        raise UserError(
            f"teacher '{teacher.name}': the environment variable {teacher.api_key_variable} is not set"
        )

    def create() -> Any:
        import ray

        remote = ray.remote(ServedTeacher).options(max_concurrency=CONCURRENCY, num_cpus=0)
        return remote.remote(
            teacher, api_key=key, vocab_size=settings.vocab_size, timeout_s=settings.timeout_s
        )

    slot = Slot(teacher.name, create, CALLS_AT_ONCE, pulse=None, fixed=teacher.name)
    return Group(
        name=f"url:{teacher.name}",
        teachers=(teacher.name,),
        slots=[slot],
        queues=Queues(TOKENS_PER_S),
        architectures={teacher.name: ""},
        swap_s=0.0,
        restart_s=0.0,
    )
