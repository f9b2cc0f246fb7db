"""What a policy may try in its sandbox: contained, and its own fault (never ours, never retried)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from sandboxes import SMALL, needs_bubblewrap

from envs.sandbox.bwrap import BwrapSandbox, open_bwrap
from rlframe.errors import InfraFault, PolicyFault

pytestmark = needs_bubblewrap


@pytest.fixture
async def sandbox() -> AsyncIterator[BwrapSandbox]:
    opened = await open_bwrap(SMALL)
    yield opened
    await opened.close()


async def still_works(sandbox: BwrapSandbox) -> None:
    result = await sandbox.exec("echo alive")
    assert (result.exit_code, result.stdout, result.limit) == (0, b"alive\n", "")


async def python(sandbox: BwrapSandbox, code: str, **given: float) -> str:
    result = await sandbox.exec(["python3", "-c", code], **given)  # type: ignore[arg-type]
    return (result.stdout + result.stderr).decode(errors="replace")


async def test_network(sandbox: BwrapSandbox) -> None:
    """Not this machine's loopback either, nor its abstract sockets, nor a name server."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0rlframe-escape-test")
        named.listen()
        port = listener.getsockname()[1]
        code = f"""
import socket
def fails(what):
    try: what()
    except OSError as error: return type(error).__name__
    return "REACHED"
print(fails(lambda: socket.create_connection(("127.0.0.1", {port}), 2)))
print(fails(lambda: socket.create_connection(("1.1.1.1", 443), 2)))
print(fails(lambda: socket.getaddrinfo("example.com", 443)))
print(fails(lambda: socket.socket(socket.AF_UNIX).connect("\\0rlframe-escape-test")))
"""
        found = (await python(sandbox, code)).split()
    assert found == ["ConnectionRefusedError", "OSError", "gaierror", "ConnectionRefusedError"]


async def test_other_processes_and_signals_to_the_parent(sandbox: BwrapSandbox) -> None:
    """It sees its own alone; who supervises it neither dies, nor stops, nor may be read."""
    code = f"""
import os, signal
seen = [int(p) for p in os.listdir("/proc") if p.isdigit()]
print(max(seen) < 100, os.path.exists("/proc/{os.getpid()}/environ"))
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
try: os.kill({os.getpid()}, 9)
except ProcessLookupError: print("nobody there")
for name in ("mem", "environ", "fd/0", "root/etc"):
    try: os.readlink("/proc/1/" + name) if "/" in name else open("/proc/1/" + name, "rb+").read(1)
    except OSError as error: print(type(error).__name__)
"""
    found = (await python(sandbox, code)).split("\n")
    assert found[:2] == ["True False", "nobody there"]
    assert found[2:6] == ["PermissionError"] * 4
    await still_works(sandbox)


async def test_it_is_no_user_of_this_machine(sandbox: BwrapSandbox) -> None:
    status = (await sandbox.exec("cat /proc/self/status")).stdout.decode()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["CapEff"] == lines["CapBnd"] == lines["CapAmb"] == "0" * 16
    assert lines["NoNewPrivs"] == "1"
    assert lines["Uid"].split()[0] == "1000"
    children = psutil.Process(sandbox._process.pid).children(recursive=True)
    outside = {process.uids().real for process in children}
    assert 0 not in outside


async def test_host_files(sandbox: BwrapSandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    for command in (
        f"cat {tmp_path}/secret",
        "cat /etc/shadow",
        f"ln -s {tmp_path} up && cat up/secret",
        f"cat ../../../../../../..{tmp_path}/secret",
        f"cat /proc/1/root{tmp_path}/secret",
        f"cat /proc/1/cwd{tmp_path}/secret",
        "ls /root /var/run/docker.sock /sys/fs/cgroup /work",
        "ls /run/image /run/rlframe /run/disk",
    ):
        result = await sandbox.exec(command)
        assert result.exit_code != 0, command
        assert b"of the host" not in result.stdout
    await sandbox.exec(f"ln -s {tmp_path}/secret link; ln -s /etc/shadow shadow")
    for name in ("link", "shadow"):
        with pytest.raises(FileNotFoundError):
            await sandbox.read(f"/workspace/{name}")


async def test_what_it_writes_stays_in_it(sandbox: BwrapSandbox) -> None:
    """Kernel settings, devices and the system's own directories are not written through."""
    before = {path: os.stat(path).st_mode for path in ("/dev/null", "/usr/bin/env")}
    for command in (
        "echo '|/tmp/x' > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "chmod 0 /dev/null",
        "chmod 0 /usr/bin/env",
    ):
        assert (await sandbox.exec(command)).exit_code != 0, command
    assert (
        await sandbox.exec("touch /usr/of-the-sandbox && ls /usr/of-the-sandbox")
    ).exit_code == 0
    assert not Path("/usr/of-the-sandbox").exists()
    assert before == {path: os.stat(path).st_mode for path in before}


async def test_mounts_and_namespaces(sandbox: BwrapSandbox) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(result): return result != 0 and ctypes.get_errno() in (1, 13, 28)
print(refused(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
print(refused(libc.mount(b"/", b"/tmp", None, 4096, None)))
print(refused(libc.umount2(b"/proc", 2)), refused(libc.chroot(b"/tmp")))
for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000):
    print(refused(libc.unshare(flag)))
print(refused(libc.mount(b"none", b"/", None, 32, None)))
"""
    assert set((await python(sandbox, code)).split()) == {"True"}


async def test_fork_bomb(sandbox: BwrapSandbox) -> None:
    result = await sandbox.exec(":(){ :|:& };: ; sleep 0.2", timeout_s=3)
    again = await sandbox.exec("true", timeout_s=3)
    # A bomb whose shell waits for room until its time is up has met both limits.
    assert {result.limit, again.limit} & {"processes", "time"}
    await still_works(sandbox)


async def test_processes_that_leave_their_session_are_ended_too(sandbox: BwrapSandbox) -> None:
    await sandbox.exec("setsid sleep 1000 & setsid setsid sleep 1000 & disown -a")
    await sandbox.end_processes()
    assert (await sandbox.exec("pgrep sleep")).stdout == b""


async def test_memory_bomb(sandbox: BwrapSandbox) -> None:
    result = await sandbox.exec(["python3", "-c", "x = bytearray(1 << 30)"])
    assert (result.exit_code, result.limit) == (137, "memory")
    await still_works(sandbox)


async def test_many_processes_share_one_memory_limit(sandbox: BwrapSandbox) -> None:
    one = "python3 -c 'x = bytearray(100 << 20); import time; time.sleep(2)'"
    result = await sandbox.exec(" & ".join([one] * 4) + " & wait")
    assert result.limit == "memory"
    await still_works(sandbox)


async def test_disk_fill(sandbox: BwrapSandbox) -> None:
    """Everywhere that it can write: one disk. Files and inodes both."""
    result = await sandbox.exec(
        "for d in /tmp /workspace /usr /home/agent /dev/shm; do cat /dev/zero > $d/big; done"
    )
    assert result.limit == "disk"
    total = await sandbox.exec("du -sm --total /tmp /workspace /usr/big /home/agent | tail -1")
    assert int(total.stdout.split()[0]) <= 32
    await sandbox.exec("rm -f /tmp/big /workspace/big /usr/big /home/agent/big /dev/shm/big")
    await still_works(sandbox)
    result = await sandbox.exec("cd /tmp; i=0; while : > $i; do i=$((i+1)); done", timeout_s=50)
    assert result.limit == "disk"


async def test_time(sandbox: BwrapSandbox) -> None:
    result = await sandbox.exec("trap '' TERM INT; sleep 1000", timeout_s=0.3)
    assert (result.exit_code, result.limit) == (137, "time")
    await still_works(sandbox)


def _processes(sandbox: BwrapSandbox) -> list[psutil.Process]:
    return psutil.Process(sandbox._process.pid).children(recursive=True)


def _names(processes: list[psutil.Process]) -> list[str]:
    return [p.info["name"] for p in psutil.process_iter(["name"]) if p in processes]


async def test_nothing_lives_on_after_the_end(sandbox: BwrapSandbox) -> None:
    await sandbox.exec("trap '' TERM; setsid nohup sleep 1000 > /dev/null 2>&1 & echo $!")
    # What went to the background becomes `sleep` in its own time.
    async with asyncio.timeout(30):
        while "sleep" not in _names(inside := _processes(sandbox)):
            await asyncio.sleep(0.02)
    await sandbox.close()
    _, alive = psutil.wait_procs(inside, timeout=10)
    assert not alive


async def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    """Killed without a chance to clean up."""
    code = (
        "import asyncio, os\nfrom envs.sandbox.bwrap import open_bwrap\n"
        "from envs.sandbox.spec import SandboxSpec\n"
        "async def main():\n    s = await open_bwrap(SandboxSpec())\n"
        "    await s.exec('setsid sleep 1000 > /dev/null 2>&1 &')\n"
        "    print(s._process.pid, flush=True)\n    os.kill(os.getpid(), 9)\nasyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(pid)], timeout=10)
    await process.wait()
    assert not psutil.pid_exists(pid)


async def test_a_sandbox_destroyed_from_within_is_the_policys_fault(sandbox: BwrapSandbox) -> None:
    """Taking the supervisor's own means away: another user's id would be needed to be ours."""

    async def destroy() -> None:
        await python(
            sandbox, "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3))"
        )
        await sandbox.exec("true")

    with pytest.raises(PolicyFault, match=r"ended from within|crash"):
        await destroy()


async def test_one_that_never_worked_or_is_closed_is_ours(tmp_path: Path) -> None:
    with pytest.raises(InfraFault, match=r"image '.*nowhere' is absent"):
        await open_bwrap(replace(SMALL, image=str(tmp_path / "nowhere")))
    opened = await open_bwrap(SMALL)
    await opened.close()
    await opened.close()
    with pytest.raises(InfraFault, match="closed"):
        await opened.exec("true")


async def test_the_model_is_reached_through_its_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            client.sendall(b"hello from the gateway")
            client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        opened = await open_bwrap(replace(SMALL, model_socket=str(path)))
        code = (
            "import socket; s = socket.create_connection(('127.0.0.1', 8080)); print(s.recv(100))"
        )
        assert "hello from the gateway" in await python(opened, code)
        await opened.close()
        thread.join(5)
