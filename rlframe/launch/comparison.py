"""What the student is compared with: each teacher, and the average of their weights, on all held-out tasks.

They are served by the student's own engines, one after the other, before the first step: the same sampling, the
same tasks. Teachers of another architecture, or served by URL, can't be and are left out. The rewards are kept in
`comparison.json`, so that a resumed run does not evaluate again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlframe import weights
from rlframe.distillation.report import AVERAGE
from rlframe.distillation.weight_average import write_average
from rlframe.durable_files import write_atomic
from rlframe.errors import RunError, UserError
from rlframe.interfaces import RolloutService, TaskSource
from rlframe.producer import Producer
from rlframe.statistics import rewards_by_domain
from rlframe.teachers.manifest import Teacher, TeacherManifest
from rlframe.types import WeightManifest

FILE = "comparison.json"
Rewards = Mapping[str, float]
"""Held-out reward by domain, and over all as `mean`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """In the run directory."""

    directory: Path
    manifest: TeacherManifest
    source: TaskSource
    producer: Producer
    service: RolloutService
    say: Callable[[str], None]

    def make(self, student: WeightManifest, scratch: str) -> dict[str, Rewards]:
        """Syncs the engines to each in turn; the caller syncs them to the student afterwards."""
        found = read_comparison(self.directory)
        fitting = self._fitting(student)
        for teacher in fitting:
            if teacher.name not in found:
                found[teacher.name] = self._rewards(
                    teacher.name, teacher.checkpoint, student.version
                )
                self._write(found)
        if len(fitting) > 1 and AVERAGE not in found:
            with tempfile.TemporaryDirectory(dir=scratch) as directory:
                write_average([t.checkpoint for t in fitting], Path(directory))
                found[AVERAGE] = self._rewards(AVERAGE, directory, student.version)
            self._write(found)
        return found

    def _fitting(self, student: WeightManifest) -> Sequence[Teacher]:
        """Those whose weights the student's engines take."""
        wanted = {name: (spec.shape, spec.dtype) for name, spec in student.tensors.items()}
        fitting = []
        for teacher in self.manifest.teachers:
            if teacher.checkpoint and _signature(teacher.checkpoint) == wanted:
                fitting.append(teacher)
            else:
                self.say(
                    f"teacher {teacher.name} is not compared: other weights than the student's"
                )
        return fitting

    def _rewards(self, name: str, directory: str, version: int) -> Rewards:
        self.service.sync(weights.build_manifest(directory, version=version))
        attempts = self.producer.evaluate(
            self.source.held_out_tasks(), tag=f"compared/{name.replace(' ', '_')}"
        )
        counted = [t for t in attempts if t.status.is_trainable]
        if not counted:
            raise RunError(f"no held-out attempt of {name} could be scored")
        rewards = rewards_by_domain(counted)
        self.say(f"{name}: held-out reward {rewards['mean']:.3f}")
        return rewards

    def _write(self, found: Mapping[str, Rewards]) -> None:
        write_atomic(self.directory / FILE, json.dumps(found, indent=2) + "\n")


def read_comparison(directory: Path) -> dict[str, Rewards]:
    """By teacher, and of the average; empty before it is made."""
    file = directory / FILE
    found: dict[str, Rewards] = json.loads(file.read_text()) if file.exists() else {}
    return found


def best_by_domain(manifest: TeacherManifest, compared: Mapping[str, Rewards]) -> dict[str, str]:
    """Of each domain's teachers the one with the highest held-out reward. UserError where one was not compared."""
    domains = {d for rewards in compared.values() for d in rewards if d != "mean"}
    best = {}
    for domain in sorted(domains):
        names = [teacher.name for teacher in manifest.of_domain(domain)]
        unknown = [name for name in names if name not in compared]
        if unknown and len(names) > 1:
            raise UserError(
                f"algorithm.several_teachers=best: '{unknown[0]}' teaches '{domain}' with others, but can't be "
                "evaluated in the student's engines; use mixture"
            )
        best[domain] = max(names, key=lambda name: compared.get(name, {}).get(domain, 0.0))
    return best


def _signature(directory: str) -> dict[str, tuple[tuple[int, ...], str]]:
    tensors = weights.open_directory(directory)
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
