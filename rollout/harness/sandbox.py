"""A bubblewrap sandbox for one agent program: no network, not root, one way out to the gateway.

Inside: the system's own directories and the program's, read-only; the work directory at /workspace and
a HOME, writable; everything else empty. The user inside has no capability, and outside no rights but on
those two (`rlframe.sandbox.bubblewrap`). The gateway's Unix socket is bound in, and `forward.py` puts a
port of loopback before it, where programs look for their API. All processes end with the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlframe.errors import InfraFault, UserError
from rlframe.sandbox.bubblewrap import (
    ETC,
    INSIDE,
    SYSTEM,
    command_line,
    hand_over,
    outer_uid,
    read_only,
)
from rlframe.sandbox.limits import Limits
from rollout.harness.program import Endpoint, Program

PORT = 8080
WORKSPACE, HOME, SOCKET, FORWARD = (
    "/workspace",
    "/home/agent",
    "/run/gateway.sock",
    "/run/forward.py",
)
TAIL_BYTES = 4000
KILL_AFTER_S = 5.0
GRACE_S = 5.0
"""To end by itself, for a program that is told to by `stop`."""


@dataclass(frozen=True, slots=True)
class Installed:
    """Where a program lies on this machine."""

    bin_directory: Path
    """Holds the command."""
    roots: tuple[Path, ...]
    """Everything that must be visible for it to run."""


def find_installed(program: Program, directory: Path) -> Installed:
    """Where `scripts/install_agents.py` has put it. UserError where it isn't."""
    own = (directory / program.name).resolve()
    python = program.package.startswith("pypi:")
    bin_directory = own / ("bin" if python else "node_modules/.bin")
    if not bin_directory.is_dir():
        raise UserError(
            f"rollout.black_box.program={program.name} is not installed in '{directory}': "
            f"`.venv/bin/python scripts/install_agents.py {program.name}`"
        )
    interpreter = (
        bin_directory / "python" if python else Path(shutil.which("node") or "/usr/bin/node")
    )
    return Installed(bin_directory, (own, interpreter.resolve().parents[1]))


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How it ended."""

    exit_code: int
    """128 + n after signal n; -1 where it was killed by us."""
    seconds: float
    timed_out: bool
    stdout_tail: str
    stderr_tail: str


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Starts programs; see the module's docstring."""

    gateway_socket: Path
    limits: Limits = field(default_factory=Limits)

    async def run(
        self,
        program: Program,
        installed: Installed,
        *,
        task: str,
        workspace: Path,
        scratch: Path,
        key: str,
        model: str = "policy",
        context_tokens: int = 200_000,
        output_tokens: int = 32_000,
        stop: asyncio.Event | None = None,
    ) -> ProgramResult:
        """Until the program ends or its time is up. `scratch` is ours, for HOME and the outputs.

        Once `stop` is set, it has GRACE_S more: mini-swe-agent, for one, asks again for minutes.

        UserError where bubblewrap is missing; InfraFault where the sandbox itself can't be set up.
        """
        url = f"http://127.0.0.1:{PORT}"
        endpoint = Endpoint(url, key, model, context_tokens, output_tokens)
        home = scratch / "home"
        for relative, content in program.files(endpoint).items():
            path = home / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        home.mkdir(parents=True, exist_ok=True)
        command, *arguments = program.command(task, endpoint)
        inside = [str(installed.bin_directory / command), *arguments]
        settings = {"socket": SOCKET, "port": PORT, "limits": self.limits.rlimits()}
        argv = [
            *self._bubblewrap(installed, workspace, home),
            "--",
            _base_python(),
            "-I",
            FORWARD,
            json.dumps(settings),
            *inside,
        ]
        environment = {
            "PATH": f"{installed.bin_directory}:/usr/local/bin:/usr/bin:/bin",
            "HOME": HOME,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **program.environment(endpoint),
        }
        return await self._run(argv, environment, scratch, stop or asyncio.Event())

    def _bubblewrap(self, installed: Installed, workspace: Path, home: Path) -> list[str]:
        readable = [*SYSTEM, *(f"/etc/{name}" for name in ETC), sys.base_prefix]
        readable += [str(root) for root in installed.roots]
        user = outer_uid()
        for directory in (workspace, home):
            hand_over(directory, user)
        if os.geteuid() == 0:  # every sandbox's user connects to it; its directory is ours alone
            self.gateway_socket.chmod(0o666)
        binds = [
            *read_only(readable),
            ("--ro-bind", str(INSIDE / "forward.py"), FORWARD),
            ("--bind", str(self.gateway_socket), SOCKET),
            ("--bind", str(workspace), WORKSPACE),
            ("--bind", str(home), HOME),
        ]
        empty = ("--tmpfs", "/tmp", "--tmpfs", "/run")
        return command_line(binds, ("--chdir", WORKSPACE), before=empty, user=user)

    async def _run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        scratch: Path,
        stop: asyncio.Event,
    ) -> ProgramResult:
        began = time.monotonic()
        outputs = scratch / "stdout", scratch / "stderr"
        with outputs[0].open("wb") as stdout, outputs[1].open("wb") as stderr:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=dict(environment),
                    start_new_session=True,
                )
            except OSError as error:
                raise InfraFault(f"the sandbox does not start: {error}") from error
            try:
                timed_out = await _ended(process, self.limits.timeout_s, stop)
                code = -1 if process.returncode is None else process.returncode
            finally:
                await _kill(process)
        tails = [_tail(path) for path in outputs]
        if code != 0 and tails[1].startswith("bwrap: "):
            raise InfraFault(f"the sandbox can't be set up: {tails[1][:300]}")
        return ProgramResult(code, time.monotonic() - began, timed_out, tails[0], tails[1])


def _base_python() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


async def _ended(
    process: asyncio.subprocess.Process, timeout_s: float, stop: asyncio.Event
) -> bool:
    """Whether its time ran out; False where it ended, or was told to stop and did or did not."""
    ends, stops = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait(
            (ends, stops), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if ends not in done and done:
            await asyncio.wait((ends,), timeout=GRACE_S)
        return not done
    finally:
        ends.cancel()
        stops.cancel()


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Bubblewrap's own end ends the process namespace and everything in it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait_for(process.wait(), KILL_AFTER_S)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - TAIL_BYTES, 0))
        return file.read().decode(errors="replace")
