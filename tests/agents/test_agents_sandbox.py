"""The sandbox, with programs of a few lines: what they can reach, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.errors import InfraFault, UserError
from rlframe.sandbox.bubblewrap import find_bubblewrap
from rlframe.sandbox.limits import Limits
from rollout.gateway.registry import Registry
from rollout.gateway.server import Gateway
from rollout.harness.program import Program, find_program
from rollout.harness.programs import PROGRAMS
from rollout.harness.sandbox import (
    TAIL_BYTES,
    Installed,
    ProgramResult,
    Sandbox,
    find_installed,
)

PYTHON = Path(sys.base_prefix)
Run = Callable[..., Any]
GENEROUS = Limits(timeout_s=60.0)

try:
    find_bubblewrap()
    MISSING = ""
except UserError as error:
    MISSING = str(error)
needs_bubblewrap = pytest.mark.skipif(bool(MISSING), reason=MISSING)

# Holds a lock on a file in the work directory until its last process is gone.
HOLD = """
import fcntl, os, signal, subprocess, sys, time
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "1000"], pass_fds=[lock.fileno()], start_new_session=True)
open("ready", "w").close()
"""


def program(code: str) -> Program:
    return Program(
        name="probe",
        command=lambda task, endpoint: ["python3", "-c", code, task],
        environment=lambda endpoint: {"KEY": endpoint.key, "URL": endpoint.base_url},
        package="pypi:probe==0",
        files=lambda endpoint: {".probe/config": endpoint.model},
    )


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """run(code, **what Sandbox.run takes)"""
    gateway = Gateway(Registry())
    socket = tmp_path / "gateway.sock"
    await gateway.listen_unix(socket)
    (tmp_path / "workspace").mkdir()
    (tmp_path / "scratch").mkdir()

    async def start(code: str, *, limits: Limits = GENEROUS, **given: Any) -> ProgramResult:
        given = {"workspace": tmp_path / "workspace", "task": "the task", "key": "rk-1", **given}
        return await Sandbox(socket, limits).run(
            program(code),
            Installed(PYTHON / "bin", (PYTHON,)),
            scratch=tmp_path / "scratch",
            **given,
        )

    yield start
    await gateway.close()


@needs_bubblewrap
async def test_it_sees_the_gateway_and_nothing_else(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of another attempt")
    code = f"""
import json, os, socket, sys, urllib.request
def fails(what):
    try: what()
    except OSError as error: return type(error).__name__
    return ""
status = [line for line in open("/proc/self/status") if line.startswith("CapEff")]
print(json.dumps({{
    "gateway": urllib.request.urlopen(os.environ["URL"] + "/").status,
    "outside": fails(lambda: socket.create_connection(("1.1.1.1", 443), 5)),
    "names": fails(lambda: socket.getaddrinfo("example.com", 443)),
    "system": fails(lambda: open("/usr/x", "w")),
    "other": fails(lambda: open({str(tmp_path / "secret")!r})),
    "shadow": fails(lambda: open("/etc/shadow")),
    "uid": os.getuid(), "capabilities": int(status[0].split()[1], 16),
    "processes": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "environment": sorted(os.environ), "task": sys.argv[1], "here": os.getcwd(),
    "config": open(os.path.expanduser("~/.probe/config")).read(),
}}))
open("made", "w").write("by the program")
"""
    result = await run(code, model="m")
    found = json.loads(result.stdout_tail)
    environment = set(found.pop("environment")) - {"LC_CTYPE", "PWD"}
    assert environment == {"HOME", "KEY", "LANG", "PATH", "TERM", "URL"}
    assert found.pop("processes") <= 4
    assert found == {
        "gateway": 200,
        "outside": "OSError",
        "names": "gaierror",
        "system": "OSError",
        "other": "FileNotFoundError",
        "shadow": "FileNotFoundError",
        "uid": 1000,
        "capabilities": 0,
        "task": "the task",
        "here": "/workspace",
        "config": "m",
    }
    assert (tmp_path / "workspace" / "made").read_text() == "by the program"
    assert result.exit_code == 0


def all_gone(lock: Path) -> None:
    """Returns when the last process that holds the lock has ended; the test's own time limit else."""
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@needs_bubblewrap
@pytest.mark.timeout(60)
async def test_nothing_outlives_the_time_limit(run: Run, tmp_path: Path) -> None:
    result = await run(HOLD + "time.sleep(1000)", limits=Limits(timeout_s=6.0))
    assert result.timed_out
    assert result.exit_code == -1
    assert (tmp_path / "workspace" / "ready").exists()
    await asyncio.to_thread(all_gone, tmp_path / "workspace" / "lock")


@needs_bubblewrap
@pytest.mark.timeout(60)
async def test_nothing_outlives_a_program_that_has_ended(run: Run, tmp_path: Path) -> None:
    result = await run(HOLD)
    assert result.exit_code == 0
    await asyncio.to_thread(all_gone, tmp_path / "workspace" / "lock")


@needs_bubblewrap
@pytest.mark.timeout(60)
async def test_cancelled_it_is_gone(run: Run, tmp_path: Path) -> None:
    running = asyncio.create_task(run(HOLD + "time.sleep(1000)"))
    ready = tmp_path / "workspace" / "ready"
    while not ready.exists():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(all_gone, tmp_path / "workspace" / "lock")


@needs_bubblewrap
@pytest.mark.timeout(60)
async def test_told_to_stop_it_may_end_by_itself_or_is_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.harness.sandbox.GRACE_S", 0.0)
    stop = asyncio.Event()
    stop.set()
    result = await run("import time; time.sleep(1000)", stop=stop)
    assert (result.exit_code, result.timed_out) == (-1, False)
    monkeypatch.setattr("rollout.harness.sandbox.GRACE_S", 50.0)
    result = await run("raise SystemExit(7)", stop=stop)
    assert (result.exit_code, result.timed_out) == (7, False)


@needs_bubblewrap
async def test_exit_codes_and_the_ends_of_outputs(run: Run) -> None:
    result = await run(
        "import sys; print('x' * 100_000 + 'end'); print('why', file=sys.stderr); sys.exit(3)"
    )
    assert result.exit_code == 3
    assert len(result.stdout_tail) == TAIL_BYTES
    assert result.stdout_tail.endswith("end\n")
    assert result.stderr_tail == "why\n"
    killed = await run("import os; os.kill(os.getpid(), 11)")
    assert killed.exit_code == 128 + 11


@needs_bubblewrap
async def test_limits_of_memory_and_of_files(run: Run, tmp_path: Path) -> None:
    limits = Limits(timeout_s=60.0, memory_bytes=1 << 28, file_bytes=1 << 20)
    result = await run("x = bytearray(1 << 29)", limits=limits)
    assert result.exit_code == 1
    assert "MemoryError" in result.stderr_tail
    result = await run("open('big', 'wb').write(bytes(1 << 21))", limits=limits)
    assert result.exit_code != 0
    assert (tmp_path / "workspace" / "big").stat().st_size == 1 << 20


@needs_bubblewrap
async def test_a_sandbox_that_cannot_be_made_is_our_fault(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InfraFault, match="the sandbox can't be set up: bwrap: "):
        await run("", workspace=tmp_path / "nowhere")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install bubblewrap"):
        find_bubblewrap()
    with pytest.raises(UserError, match=r"scripts/install_agents.py codex"):
        find_installed(find_program("codex"), tmp_path)
    with pytest.raises(UserError, match=r"claude_cod'.*claude_code"):
        find_program("claude_cod")


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_gets_its_key_on_a_command_line(name: str) -> None:
    """All users of a machine can read command lines."""
    from rollout.harness.program import Endpoint

    endpoint = Endpoint("http://127.0.0.1:1", "rk-canary")
    chosen = find_program(name)
    assert "canary" not in " ".join(chosen.command("task", endpoint))
    where = [*chosen.environment(endpoint).values(), *chosen.files(endpoint).values()]
    assert any("rk-canary" in text for text in where)
    assert "canary" not in repr(endpoint)
    kind, _, pinned = chosen.package.partition(":")
    assert kind in ("npm", "pypi")
    assert pinned.rpartition("==" if kind == "pypi" else "@")[2].replace(".", "").isdigit()
