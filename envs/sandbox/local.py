"""A sandbox that is none: commands run as we do, in a directory of their own. For tests of what runs on
top of a sandbox, where bubblewrap can't be had; never for what a policy writes.

Paths are below the directory (`/workspace/a` is `ROOT/workspace/a`), and commands see it in `$ROOT`; only
time and output are limited.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.sandbox import command_files
from envs.sandbox.spec import SandboxSpec
from rlframe.errors import InfraFault
from rlframe.sandbox.protocol import ExecResult


@dataclass(slots=True)
class LocalSandbox:
    """Satisfies `rlframe.sandbox.protocol.Sandbox` in form only: it contains nothing."""

    spec: SandboxSpec
    root: Path
    _groups: list[int] = field(default_factory=list)
    _closed: bool = False

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
        self._check()
        words = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        began = time.monotonic()
        environment = self.spec.environ({"ROOT": str(self.root), **(env or {})})
        environment["HOME"] = str(self._at(self.spec.home))
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=self._at(cwd or self.spec.workdir),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._groups.append(process.pid)
        limit = ""
        talk = asyncio.create_task(process.communicate(stdin))
        try:
            stdout, stderr = await asyncio.wait_for(asyncio.shield(talk), timeout_s)
        except TimeoutError:
            limit = "time"
            _kill(process.pid)
            stdout, stderr = await talk
        code = process.returncode or 0
        out, dropped_out = command_files.both_ends(stdout, max_output_bytes)
        err, dropped_err = command_files.both_ends(stderr, max_output_bytes)
        code = 128 - code if code < 0 else code
        return ExecResult(code, out, err, time.monotonic() - began, dropped_out, dropped_err, limit)

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        self._check()
        with self._at(path).open("rb") as file:
            return file.read(max_bytes)

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self._check()
        place = self._at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(mode)

    async def upload(self, archive: bytes, directory: str = "/") -> None:
        self._check()
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            opened.extractall(self._at(directory), filter="data")

    async def snapshot(self, paths: Sequence[str], *, max_bytes: int = 256 << 20) -> bytes:
        self._check()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in paths:
                archive.add(self._at(path), path.lstrip("/") or ".")
        if buffer.tell() > max_bytes:
            raise OSError(27, "is larger than allowed")
        return buffer.getvalue()

    async def end_processes(self) -> None:
        for group in self._groups:
            _kill(group)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.end_processes()
            shutil.rmtree(self.root, ignore_errors=True)

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _check(self) -> None:
        if self._closed:
            raise InfraFault("the sandbox is closed")


async def open_local(spec: SandboxSpec) -> LocalSandbox:
    root = Path(tempfile.mkdtemp(prefix="rlframe-local-"))
    for directory in (spec.workdir, spec.home, "/tmp", *spec.directories):
        (root / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return LocalSandbox(spec, root)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
