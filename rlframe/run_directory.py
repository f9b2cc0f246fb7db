"""The run directory: what is where, and the lock that keeps a second driver out.

config.yaml          the resolved configuration
metrics.jsonl        one line a step (rlframe.metrics)
trajectories.sqlite  every finished trajectory (rlframe.store)
evaluations.sqlite   attempts of evaluations in the background (rlframe.background_evaluation)
checkpoints/         rlframe.checkpoints
hf/                  the final model as a Hugging Face checkpoint
logs/                what the processes printed
bad_steps/           which traces made a step one (rlframe.bad_steps)
summary.json         the run's result
reward.png           its curve
run.lock             which process drives it
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlframe.errors import UserError

_held: set[Path] = set()
"""Lock files held by this process. POSIX locks do not exclude their own process, and closing *any*
descriptor of the file would give the lock up, so the file must not even be opened twice."""


class RunDirectory:
    """Paths below `path`; nothing is created before `claim`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.trajectories = self.path / "trajectories.sqlite"
        self.evaluations = self.path / "evaluations.sqlite"
        self.checkpoints = self.path / "checkpoints"
        self.hf = self.path / "hf"
        self.logs = self.path / "logs"
        self.bad_steps = self.path / "bad_steps"
        self.summary = self.path / "summary.json"
        self.curve = self.path / "reward.png"
        self.lock = self.path / "run.lock"

    def is_used(self) -> bool:
        """Whether a run has left something here that `resume` would go on from."""
        return self.trajectories.exists() or self.metrics.exists() or self.checkpoints.exists()

    @contextmanager
    def claim(self, *, resume: str) -> Iterator[None]:
        """Creates the directory and holds its lock until the end of the block.

        `resume`: `auto`; `never` refuses a used directory; `must` refuses an unused one. Raises
        UserError for that, for a directory another process drives, and for one that can't be written.
        The lock is the operating system's: it is gone with the process, however that died.
        """
        if resume == "must" and not self.is_used():
            raise UserError(
                f"resume=must, but {self.path} holds no run: check run_dir, or use resume=auto"
            )
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            descriptor = self._lock()
        except OSError as error:
            raise UserError(
                f"run_dir={self.path} cannot be used ({error}): give a directory that can be written"
            ) from error
        try:
            if resume == "never" and self.is_used():
                raise UserError(
                    f"resume=never, but {self.path} already holds a run: "
                    "give another run_dir or name, delete it, or use resume=auto"
                )
            yield
        finally:
            _held.discard(self.lock)
            os.close(descriptor)

    def _lock(self) -> int:
        if self.lock in _held:
            raise self._busy(os.getpid(), socket.gethostname())
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 1000)
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise self._busy(*_holder(holder)) from None
        _held.add(self.lock)
        os.ftruncate(descriptor, 0)
        os.write(
            descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        )
        return descriptor

    def _busy(self, pid: int, host: str) -> UserError:
        return UserError(
            f"{self.path} is being used by process {pid} on {host}: wait for it, stop it, "
            "or give this run another run_dir or name"
        )


def _holder(content: bytes) -> tuple[int, str]:
    """What the lock file says; its writer may be between taking the lock and saying so."""
    try:
        said = json.loads(content)
        return int(said["pid"]), str(said["host"])
    except (ValueError, KeyError, TypeError):
        return 0, "another machine"
