"""A pool of tiny teachers on real engines, for benchmarks and tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlframe.cluster.connect import connect
from rlframe.cluster.demand import PartDemand
from rlframe.cluster.placement import place
from rlframe.config.schema import ClusterConfig
from rlframe.machine import SHARED_MEMORY
from rlframe.teachers.check import read_checkpoints
from rlframe.teachers.groups import EngineGroup
from rlframe.teachers.manifest import TeacherManifest, parse_manifest
from rlframe.teaching import ScoreRequest, TeacherScores
from rollout.engine.server import EngineSpec
from rollout.teachers.build import Settings, build_pool
from rollout.teachers.pool import TeacherPool

VOCAB_SIZE = 304


@contextmanager
def two_engines_reserved(count: int = 2) -> Iterator[list[dict[str, Any]]]:
    """A Ray of our own; Ray options of `count` engines."""
    part = PartDemand("teacher", count, cpus=0.5, gpus=0.0)
    with (
        connect(ClusterConfig(), [part], env_name=""),
        place([part], placement="colocated") as options,
    ):
        yield options["teacher"]


def manifest_for(teachers: Mapping[str, Path], *more: dict[str, Any]) -> TeacherManifest:
    """Checkpoints by name; `more`: whole entries."""
    entries = [{"name": n, "checkpoint": str(p), "domains": [n]} for n, p in teachers.items()]
    return parse_manifest({"teachers": [*entries, *more]}, path="teachers.yaml")


@contextmanager
def running(
    manifest: TeacherManifest,
    options: list[dict[str, Any]],
    logs: Path,
    *,
    on_event: Callable[[str], None] = print,
    progress: Callable[[str], None] = print,
    engine_args: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Iterator[TeacherPool]:
    """A pool that is up."""
    staging = tempfile.mkdtemp(prefix="rlframe-teachers-test-", dir=SHARED_MEMORY)
    spec = EngineSpec(
        index=0,
        model_directory="",
        random_weights=False,
        dtype="",
        device="cpu",
        arguments={},
        seed=0,
        num_threads=1,
        log_directory=str(logs),
        start_timeout_s=300.0,
        control_timeout_s=120.0,
    )
    settings: dict[str, Any] = {
        "spec": spec,
        "one_host": True,
        "staging_directory": staging,
        "shared_memory_gib": 0.0,
        "vocab_size": VOCAB_SIZE,
        "tokens_in_flight": 4096,
        "on_failure": "stop",
        "max_attempts": 3,
        "max_restarts": 3,
        "hung_after_s": 20.0,
        "timeout_s": 300.0,
    }
    arguments = {"max_total_tokens": 32768, **(engine_args or {})}
    group = EngineGroup("default", len(options), 0.5, 0.0, arguments)
    pool = build_pool(
        manifest,
        read_checkpoints(manifest),
        [group],
        Settings(**(settings | changes)),
        scheduling={"default": options},
        on_event=on_event,
    )
    try:
        pool.begin_start()
        pool.wait_started(progress)
        yield pool
    finally:
        pool.close()


def collect(pool: TeacherPool, count: int) -> dict[tuple[str, str], TeacherScores]:
    """By teacher and id."""
    found: dict[tuple[str, str], TeacherScores] = {}
    while len(found) < count:
        for scores in pool.collect(timeout_s=60.0):
            assert (scores.teacher, scores.id) not in found, "scored twice"
            found[scores.teacher, scores.id] = scores
    return found


def random_requests(
    teacher: str, count: int, *, seed: int, length: int = 48, top_k: int = 0, begin: int = 1
) -> list[ScoreRequest]:
    generator = np.random.default_rng(seed)
    return [
        ScoreRequest(
            f"{teacher}-{seed}-{n}",
            teacher,
            generator.integers(3, VOCAB_SIZE, length).astype(np.int32),
            begin=begin,
            top_k=top_k,
        )
        for n in range(count)
    ]
