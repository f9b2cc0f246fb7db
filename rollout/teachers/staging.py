"""Teachers' weights, checked and at hand: copied into shared memory where they fit, else read ahead.

Whatever an engine loads has a manifest of checksums. A copy in shared memory is hashed and looked at as
it is made, once on a node, whichever engine comes first. A teacher that does not fit stays where it is: it
is read through before its turn, which checks it against the first reading and brings it into the page
cache, where SGLang finds it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rlframe import weights
from rlframe.errors import RunError
from rlframe.teachers.checkpoints import TeacherCheckpoint
from rlframe.types import WeightManifest

FILE = "model.safetensors"


class Staging:
    """The teachers of one node. `directory` is the run's own, the same for all engines of the node."""

    def __init__(self, directory: str, checkpoints: Mapping[str, TeacherCheckpoint]) -> None:
        self._directory, self._checkpoints = Path(directory), checkpoints
        self._read: dict[str, WeightManifest] = {}

    def ready(self, teacher: str, *, keep: bool) -> WeightManifest:
        """Version 0; the caller gives it one. `keep`: in shared memory, from now on. RunError where a
        value is not finite."""
        if keep:
            return self._kept(teacher)
        known = self._read.get(teacher)
        if known is None:
            known = weights.build_manifest(self._checkpoints[teacher].directory, version=0)
            self._read[teacher] = known
        return known

    def remove(self) -> None:
        """At the end of the run, whichever engine of the node comes first."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _kept(self, teacher: str) -> WeightManifest:
        directory = self._directory / teacher
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            if not (directory / weights.MANIFEST).exists():
                _copy(self._checkpoints[teacher].directory, directory)
            return weights.read_manifest(str(directory))


def _copy(source: str, target: Path) -> None:
    """One file, hashed as it is copied; its manifest comes last."""
    stored = weights.open_directory(source)
    for name, tensor in stored.items():
        if not weights.all_finite(tensor.data, tensor.dtype):
            raise RunError(
                f"the teacher's weights in '{source}' are broken: '{name}' is not finite"
            )
    layout = [
        weights.Layout(name, tensor.dtype, tensor.shape, len(tensor.data))
        for name, tensor in stored.items()
    ]
    writer = weights.SafetensorsWriter(target / FILE, layout)
    checksums = writer.write((name, tensor.data) for name, tensor in stored.items())
    writer.close()
    weights.write_manifest(weights.build_manifest(str(target), version=0, checksums=checksums))


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Of all processes of the node."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
