"""Which checkpoints a run has. A checkpoint counts only with its marker, written after every role saved.

    checkpoints/step-000010/policy/...   written by the policy's ranks
    checkpoints/step-000010/critic/...   by the critic's
    checkpoints/step-000010/complete.json
So policy and critic are always of one step, and a half-written checkpoint is never taken.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlframe.durable_files import sync_directory, write_atomic
from rlframe.errors import UserError

MARKER = "complete.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: `step` steps are done."""

    step: int
    directory: Path

    def role(self, name: str) -> str:
        return str(self.directory / name)


class Checkpoints:
    """The checkpoints of one run directory; keeps the latest `keep`."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory, self._keep = directory, keep

    def latest(self) -> Checkpoint | None:
        complete = self.complete()
        return complete[-1] if complete else None

    def save(self, step: int, save_roles: Mapping[str, Callable[[str], None]]) -> Checkpoint:
        """Calls each role's save with its directory, then marks the whole as complete, then prunes."""
        directory = self._directory / f"step-{step:06d}"
        if (directory / MARKER).exists():
            return Checkpoint(step, directory)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, save in save_roles.items():
            save(str(directory / name))
        sync_directory(self._directory)
        write_atomic(directory / MARKER, json.dumps({"step": step, "roles": sorted(save_roles)}))
        self._prune()
        return Checkpoint(step, directory)

    def complete(self) -> list[Checkpoint]:
        """All of them, the oldest first."""
        found = []
        for marker in sorted(self._directory.glob(f"step-*/{MARKER}")):
            try:
                step = int(json.loads(marker.read_text())["step"])
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{marker} is not readable ({error}): delete that checkpoint's directory to go on "
                    "from the one before"
                ) from error
            found.append(Checkpoint(step, marker.parent))
        return sorted(found, key=lambda c: c.step)

    def _prune(self) -> None:
        complete = self.complete()
        for old in complete[: -self._keep]:
            # The marker goes first: a kill in between leaves garbage, never a checkpoint that lies.
            (old.directory / MARKER).unlink()
            shutil.rmtree(old.directory, ignore_errors=True)
        newest = complete[-1].step if complete else -1
        for path in self._directory.glob("step-*"):
            step = int(path.name.removeprefix("step-"))
            if step < newest and not (path / MARKER).exists():
                shutil.rmtree(path, ignore_errors=True)
