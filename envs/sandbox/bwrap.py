"""The default sandbox: bubblewrap, with a process of ours inside that runs the commands.

No network, no capability, no user of this machine that owns anything; an overlay root on a disk of fixed
size; memory, processes and CPU bounded together (cgroups where there are any); all processes end with the
sandbox. What ran in it can end it, and then that was its own doing: PolicyFault.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from envs.sandbox.bwrap_command import sandbox_command
from envs.sandbox.spec import Ports, SandboxSpec
from envs.sandbox.wire import CRASHED, REFUSED, Answer, Garbled, encode, read_answer
from rlframe.errors import InfraFault, PolicyFault
from rlframe.sandbox.cgroups import PREFIX, Cgroup, make_cgroup
from rlframe.sandbox.memory_watch import watch_memory
from rlframe.sandbox.protocol import ExecResult

START_S = 30.0
LATE_S = 30.0
"""After a command's own time, for its answer to come."""
END_S = 5.0


@dataclass(slots=True)
class BwrapSandbox:
    """Made by `open_bwrap`; satisfies `rlframe.sandbox.protocol.Sandbox`."""

    spec: SandboxSpec
    _process: asyncio.subprocess.Process
    _cgroup: Cgroup | None
    _errors: Any
    """bubblewrap's stderr: an unnamed file."""
    _waiting: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _number: int = 0
    _memory_kills: int = 0
    _refused: int = 0
    _used: bool = False
    _closed: bool = False
    _crashed: str = ""

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
        words = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        await self._make_room()
        before = self._incidents()
        header = {
            "op": "exec",
            "command": words,
            "cwd": cwd or self.spec.workdir,
            "env": self.spec.environ(env),
            "timeout_s": timeout_s,
            "max_output_bytes": max_output_bytes,
        }
        self._used = True
        answer = await self._ask(header, stdin, timeout_s)
        limit = self._limit(answer, before)
        await self._make_room()
        return ExecResult(
            answer.exit_code, answer.stdout, answer.stderr, answer.seconds, *answer.dropped, limit
        )

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        size = 2 * max_bytes + 2
        return await self._file(
            {"op": "read", "path": path, "max_bytes": max_bytes, "max_output_bytes": size}
        )

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        await self._file({"op": "write", "path": path, "mode": mode}, content)

    async def upload(self, archive: bytes, directory: str = "/") -> None:
        await self._file({"op": "unpack", "directory": directory}, archive)

    async def snapshot(self, paths: Sequence[str], *, max_bytes: int = 256 << 20) -> bytes:
        header = {"op": "pack", "paths": list(paths), "max_output_bytes": 2 * max_bytes + 2}
        return await self._file(header)

    async def end_processes(self) -> None:
        await self._ask({"op": "end_processes"}, b"", END_S)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), END_S)
        transport = getattr(self._process, "_transport", None)
        if transport is not None:
            transport.close()
        self._fail(InfraFault("the sandbox was closed"))
        self._errors.close()
        if self._cgroup is not None:
            await asyncio.to_thread(self._cgroup.remove)

    async def _make_room(self) -> None:
        """After a fork bomb nothing else could start."""
        refused = self._incidents()["processes"]
        if refused > self._refused:
            await self.end_processes()
            self._refused = self._incidents()["processes"]

    async def _file(self, header: Mapping[str, Any], payload: bytes = b"") -> bytes:
        """A file operation; raises OSError as it did inside."""
        answer = await self._ask(header, payload, LATE_S)
        if answer.exit_code == 0:
            if answer.dropped[0]:
                raise OSError(errno.EFBIG, "is larger than allowed", str(header.get("path", "")))
            return answer.stdout
        raise_inside(answer)

    async def _ask(self, header: Mapping[str, Any], payload: bytes, seconds: float) -> Answer:
        if self._closed:
            raise InfraFault("the sandbox is closed")
        self._number += 1
        number = self._number
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(encode({**header, "id": number}, payload))
            with contextlib.suppress(ConnectionError):
                await stdin.drain()
            if self._process.returncode is not None and not future.done():
                self._fail(self._why())
            async with asyncio.timeout(seconds + LATE_S):
                answer = await asyncio.shield(future)
        except TimeoutError:
            raise PolicyFault("the sandbox does not answer any more") from None
        except asyncio.CancelledError:
            with contextlib.suppress(ConnectionError, RuntimeError):
                stdin.write(encode({"op": "cancel", "job": number, "id": 0}))
            raise
        finally:
            self._waiting.pop(number, None)
        if answer.kind == REFUSED:
            raise PolicyFault("the sandbox has no room for one more process")
        return answer

    async def listen(self) -> None:
        """Answers to those who wait for them, until the sandbox has ended."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            while True:
                answer = await read_answer(stdout)
                if answer.kind == CRASHED:
                    self._crashed = answer.stderr.decode(errors="replace")
                future = self._waiting.get(answer.id)
                if future is not None and not future.done():
                    future.set_result(answer)
        except Garbled as error:
            self._crashed = str(error)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        except asyncio.IncompleteReadError:
            pass
        await self._process.wait()
        self._fail(self._why())

    def begin(self) -> None:
        self._tasks.append(asyncio.create_task(self.listen()))
        if self._cgroup is None:
            limit = self.spec.quotas.memory_bytes
            watch = watch_memory(self._process.pid, limit, self._memory_exceeded)
            self._tasks.append(asyncio.create_task(watch))

    async def _memory_exceeded(self) -> None:
        self._memory_kills += 1
        with contextlib.suppress(InfraFault, PolicyFault):
            await self.end_processes()

    def _fail(self, error: Exception) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    def _why(self) -> Exception:
        """Whose fault it is that the sandbox ended, if it isn't ours to have closed it."""
        killed = self._incidents()["memory"]
        if killed:
            return PolicyFault("the sandbox ran out of memory, and ended with all that ran in it")
        if self._crashed and self._used:
            return PolicyFault(f"the sandbox was made to crash: {self._crashed}")
        if self._used:
            code = self._process.returncode
            return PolicyFault(f"the sandbox was ended from within (it ended with {code})")
        return InfraFault(f"the sandbox can't be set up: {self._crashed or self.errors()}")

    def errors(self) -> str:
        self._errors.seek(0)
        return bytes(self._errors.read(2000)).decode(errors="replace").strip()

    def _incidents(self) -> dict[str, int]:
        group = self._cgroup
        return {
            "memory": self._memory_kills + (group.out_of_memory() if group else 0),
            "processes": group.refused_forks() if group else 0,
        }

    def _limit(self, answer: Answer, before: Mapping[str, int]) -> str:
        """Which limit a command ran into: what ended it first, then what it met."""
        now = self._incidents()
        if now["memory"] > before["memory"]:
            return "memory"
        if answer.timed_out:
            return "time"
        if now["processes"] > before["processes"]:
            return "processes"
        return "disk" if answer.disk_full else ""


def raise_inside(answer: Answer) -> NoReturn:
    """The OSError that a file operation met inside."""
    number, _, rest = answer.stderr.decode(errors="replace").partition("\t")
    text, _, path = rest.partition("\t")
    if not number.isdigit():
        number, text, path = str(errno.EIO), f"ended with {answer.exit_code}", ""
    raise OSError(int(number), text, path)


async def open_bwrap(spec: SandboxSpec) -> BwrapSandbox:
    """A sandbox that is ready. UserError where bubblewrap is missing or the spec asks for what it can't;
    InfraFault where it can't be set up, an absent image too."""
    Ports("bwrap").check(spec.network)
    if spec.image and not os.path.isdir(spec.image):
        raise InfraFault(f"the sandbox's image '{spec.image}' is absent: no such directory")
    cgroup = make_cgroup(f"{PREFIX}{uuid.uuid4().hex[:12]}", spec.quotas)
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the sandbox's, until it is closed
    try:
        argv, settings = sandbox_command(spec, cgroup)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    except BaseException as error:
        errors.close()
        if cgroup is not None:
            cgroup.remove()
        if isinstance(error, OSError):
            raise InfraFault(f"the sandbox does not start: {error}") from error
        raise
    sandbox = BwrapSandbox(spec, process, cgroup, errors)
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.write(encode(settings))
        async with asyncio.timeout(START_S):
            await read_answer(process.stdout)
    except (ConnectionError, asyncio.IncompleteReadError, Garbled, TimeoutError):
        why = sandbox.errors() or "it says nothing"
        await sandbox.close()
        raise InfraFault(f"the sandbox can't be set up: {why[:500]}") from None
    except BaseException:
        await sandbox.close()
        raise
    sandbox.begin()
    return sandbox


def describe() -> str:
    """What holds the limits on this machine, for people."""
    from rlframe.sandbox.limits import Quotas

    group = make_cgroup(f"{PREFIX}{uuid.uuid4().hex[:12]}", Quotas())
    if group is None:
        return f"bubblewrap, process limits and a watcher of memory ({sys.platform})"
    group.remove()
    return f"bubblewrap and cgroups ({', '.join(sorted(group.directories))})"
