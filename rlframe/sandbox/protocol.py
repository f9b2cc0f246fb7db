"""A place where somebody else's code runs. Backends: `envs.sandbox`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

LIMITS = ("", "time", "memory", "processes", "disk")


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How one command ended. What it did to itself is its own fault, and stands here; what the sandbox
    lost is raised."""

    exit_code: int
    """128 + n after signal n."""
    stdout: bytes
    """Its beginning and its end, where `dropped_stdout` bytes are missing in between."""
    stderr: bytes
    seconds: float
    dropped_stdout: int = 0
    dropped_stderr: int = 0
    limit: str = ""
    """Which limit of the sandbox it ran into, of LIMITS; empty: none."""

    @property
    def timed_out(self) -> bool:
        return self.limit == "time"


class Sandbox(Protocol):
    """One place, single use.

        sandbox = await backend.open(spec)
        await sandbox.write("/workspace/a.py", b"print(1)")
        result = await sandbox.exec(["python3", "a.py"], timeout_s=10)
        state = await sandbox.snapshot(["/workspace"])     # a tar archive
        await sandbox.close()                              # nothing that ran in it lives on

        grading = await backend.open(spec)                 # a second, clean one
        await grading.upload(state)

    Every method raises InfraFault where the sandbox was lost by our side, PolicyFault where what ran in
    it destroyed it. `read`, `write` and `upload` raise OSError as the sandbox's file system does.
    Background processes of a command live until `close`.
    """

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        """A string is a bash command line. `cwd` empty: the sandbox's own work directory."""
        ...

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        """The beginning of a regular file."""
        ...

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Makes the directories that are missing."""
        ...

    async def upload(self, archive: bytes, directory: str = "/") -> None:
        """Unpacks a tar archive."""
        ...

    async def snapshot(self, paths: Sequence[str], *, max_bytes: int = 256 << 20) -> bytes:
        """These files and directories as a tar archive, names relative to `/`; links stay links."""
        ...

    async def end_processes(self) -> None:
        """Kill whatever the commands left running."""
        ...

    async def close(self) -> None:
        """Never raises."""
        ...
