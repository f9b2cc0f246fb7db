"""Who teaches a trajectory: one of its domain's teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from rlframe.teachers.manifest import TeacherManifest
from rlframe.types import Trajectory


@dataclass(frozen=True, slots=True)
class TeacherChoice:
    """`mixture`: drawn for each trajectory by the weights of its domain's teachers, always the same one for the
    same id; the expected loss is the weighted mean of the divergences from each. `best` names one a domain.
    """

    manifest: TeacherManifest
    best: Mapping[str, str] = field(default_factory=dict)

    def of(self, trajectory: Trajectory) -> str:
        """Its name. KeyError for a domain that nobody teaches (`TeacherManifest.check_domains` refuses it)."""
        domain = trajectory.domain
        if domain in self.best:
            return self.best[domain]
        teachers = self.manifest.of_domain(domain)
        if not teachers:
            raise KeyError(f"nobody teaches the domain '{domain}'")
        place = _uniform(trajectory.id) * sum(teacher.weight for teacher in teachers)
        for teacher in teachers:
            place -= teacher.weight
            if place < 0:
                return teacher.name
        return teachers[-1].name


def _uniform(text: str) -> float:
    """In [0, 1), the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
