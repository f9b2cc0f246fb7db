"""The suite's tasks: the committed manifest of mutations, and what each makes of its package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from envs.suites.code_repair.mutations import Mutation
from envs.suites.code_repair.packages import PACKAGES, Package, sdist_files
from rlframe.errors import UserError

MANIFEST = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True, slots=True)
class RepairTask:
    """One bug. `passing` and `passing_digest` are of the whole package's chosen tests, before the bug."""

    id: str
    package: str
    file: str
    mutation: Mutation
    mutated_sha256: str
    tests: tuple[str, ...]
    failing: tuple[str, ...]
    """Ids of the tests that the bug breaks."""
    passing: int
    passing_digest: str
    report: str
    """How one of them fails, for the task's text."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@cache
def manifest() -> tuple[RepairTask, ...]:
    rows = json.loads(MANIFEST.read_text())
    return tuple(
        RepairTask(
            **{
                **row,
                "mutation": Mutation(**row["mutation"]),
                "tests": tuple(row["tests"]),
                "failing": tuple(row["failing"]),
            }
        )
        for row in rows
    )


def repair_task(name: str) -> RepairTask:
    for task in manifest():
        if task.id == name:
            return task
    raise UserError(f"code_repair has no task '{name}'")


def package_of(task: RepairTask) -> Package:
    return PACKAGES[task.package]


def broken_source(task: RepairTask, sdist: Mapping[str, bytes]) -> bytes:
    """The mutated file. UserError where it is not the one that the manifest means."""
    changed = task.mutation.applied(sdist[task.file].decode()).encode()
    if hashlib.sha256(changed).hexdigest() != task.mutated_sha256:
        raise UserError(f"code_repair: {task.id}: '{task.file}' does not become what it must")
    return changed


def visible_files(task: RepairTask, directory: str) -> dict[str, bytes]:
    """What the agent finds, by path in its work directory: the broken package without its tests."""
    package, sdist = package_of(task), sdist_files(directory, task.package)
    files = {path: content for path, content in sdist.items() if not package.is_hidden(path)}
    return {**files, task.file: broken_source(task, sdist)}
