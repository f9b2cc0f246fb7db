"""Checkpoints of a run that trains one role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlframe.checkpoints import Checkpoints
from rlframe.interfaces import RoleTrainer


@dataclass(frozen=True, slots=True)
class RoleSaver:
    """Implements `rlframe.loop.Watcher`."""

    name: str
    """`policy` or `critic`."""
    role: RoleTrainer
    checkpoints: Checkpoints
    every: int
    """Steps; 0: only when asked."""

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.every and step % self.every == 0:
            self.save(step)

    def save(self, step: int) -> None:
        """Nothing to do where this step is saved already."""
        self.checkpoints.save(step, {self.name: lambda d: self.role.save(d, step).result()})
