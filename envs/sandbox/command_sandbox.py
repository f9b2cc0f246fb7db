"""A sandbox that can do no more than run a command: everything else is made of that. Docker's and a remote one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.sandbox import command_files
from envs.sandbox.spec import SandboxSpec
from rlframe.errors import InfraFault
from rlframe.sandbox.protocol import ExecResult

KILLED = 137
LATE_S = 30.0
"""How long after its time a command's answer is waited for."""


@dataclass(slots=True)
class CommandSandbox(ABC):
    """With `close`, satisfies `rlframe.sandbox.protocol.Sandbox`."""

    spec: SandboxSpec
    _closed: bool = field(default=False, kw_only=True)

    @abstractmethod
    async def _run(
        self,
        words: Sequence[str],
        *,
        stdin: bytes,
        cwd: str,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> tuple[int, bytes, bytes]:
        """Exit code, stdout, stderr. Raises InfraFault or PolicyFault where the sandbox is lost, or has not
        answered in `timeout_s`."""

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
        if self._closed:
            raise InfraFault("the sandbox is closed")
        words = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        began = time.monotonic()
        # `timeout` inside: ending the client does not end the command.
        code, out, err = await self._run(
            ["timeout", "-s", "KILL", f"{timeout_s:.3f}", *words],
            stdin=stdin,
            cwd=cwd or self.spec.workdir,
            env=self.spec.environ(env),
            timeout_s=timeout_s + LATE_S,
        )
        seconds = time.monotonic() - began
        stdout, dropped_out = command_files.both_ends(out, max_output_bytes)
        stderr, dropped_err = command_files.both_ends(err, max_output_bytes)
        limit = "time" if code == KILLED and seconds >= timeout_s else ""
        return ExecResult(code, stdout, stderr, seconds, dropped_out, dropped_err, limit)

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        return await command_files.read(self.exec, path, max_bytes)

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        await command_files.write(self.exec, path, content, mode)

    async def upload(self, archive: bytes, directory: str = "/") -> None:
        await command_files.upload(self.exec, archive, directory)

    async def snapshot(self, paths: Sequence[str], *, max_bytes: int = 256 << 20) -> bytes:
        return await command_files.snapshot(self.exec, paths, max_bytes)

    async def end_processes(self) -> None:
        """The user's: what holds the sandbox open is another's, or process 1."""
        await self.exec("kill -9 -1", timeout_s=LATE_S)
