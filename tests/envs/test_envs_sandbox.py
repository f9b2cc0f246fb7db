"""The sandbox protocol, the same cases on every backend that can be had here."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sandboxes import SMALL, needs_bubblewrap

from envs.sandbox.bwrap import open_bwrap
from envs.sandbox.local import LocalSandbox, open_local
from envs.sandbox.pool import SandboxPool
from envs.sandbox.spec import SandboxSpec, quotas_of
from rlframe.errors import UserError
from rlframe.sandbox import cgroups
from rlframe.sandbox.cgroups import make_cgroup
from rlframe.sandbox.limits import Quotas
from rlframe.sandbox.protocol import Sandbox
from rlframe.task_rules import task_rules

OPENERS: dict[str, Callable[[SandboxSpec], Awaitable[Sandbox]]] = {
    "local": open_local,
    "bwrap": open_bwrap,
}
BACKENDS = ["local", pytest.param("bwrap", marks=needs_bubblewrap)]


@pytest.fixture(params=BACKENDS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    opened = await OPENERS[request.param](SMALL)
    yield opened
    await opened.close()


async def test_exec(sandbox: Sandbox) -> None:
    result = await sandbox.exec("cat; echo $A; pwd > where; exit 3", stdin=b"in", env={"A": "b"})
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"inb\n", b"")
    assert (await sandbox.read("/workspace/where")).endswith(b"/workspace\n")
    words = await sandbox.exec(["printf", "%s|", "a b", "$HOME"])
    assert words.stdout == b"a b|$HOME|"
    killed = await sandbox.exec("kill -SEGV $$")
    assert killed.exit_code == 128 + 11


async def test_output_that_is_no_text_and_long(sandbox: Sandbox) -> None:
    result = await sandbox.exec(r"printf '\377\000\376'; printf '\200' >&2")
    assert (result.stdout, result.stderr) == (b"\xff\x00\xfe", b"\x80")
    long = await sandbox.exec("seq 100000; seq 7 >&2", max_output_bytes=1000)
    assert (len(long.stdout), long.dropped_stdout) == (1000, 588895 - 1000)
    assert long.stdout.startswith(b"1\n2\n")
    assert long.stdout.endswith(b"\n99999\n100000\n")
    assert (long.dropped_stderr, long.stderr) == (0, b"1\n2\n3\n4\n5\n6\n7\n")


async def test_files(sandbox: Sandbox) -> None:
    content = bytes(range(256)) * 4000
    await sandbox.write("/workspace/new/directory/a", content, mode=0o755)
    assert await sandbox.read("/workspace/new/directory/a") == content
    assert await sandbox.read("/workspace/new/directory/a", max_bytes=10) == content[:10]
    await sandbox.write("/workspace/new/directory/a", b"shorter")
    assert await sandbox.read("/workspace/new/directory/a") == b"shorter"
    with pytest.raises(FileNotFoundError):
        await sandbox.read("/workspace/nothing")
    with pytest.raises(IsADirectoryError):
        await sandbox.read("/workspace/new")


async def test_a_snapshot_goes_on_in_another_one(sandbox: Sandbox) -> None:
    await sandbox.exec("mkdir -p a/b && echo 1 > a/b/c && ln -s b/c a/link && chmod 750 a/b/c")
    archive = await sandbox.snapshot(["/workspace/a"])
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        kinds = {m.name: m.type for m in opened}
    assert kinds["workspace/a/link"] == tarfile.SYMTYPE
    second = await (open_local if isinstance(sandbox, LocalSandbox) else open_bwrap)(SMALL)
    await second.upload(archive)
    assert await second.read("/workspace/a/b/c") == b"1\n"
    await second.close()


async def test_commands_at_the_same_time(sandbox: Sandbox) -> None:
    waits = sandbox.exec("until [ -e go ]; do sleep 0.01; done; echo went", timeout_s=20)
    goes = sandbox.exec("touch go; echo sent")
    first, second = await asyncio.gather(waits, goes)
    assert (first.stdout, second.stdout) == (b"went\n", b"sent\n")


async def test_time_runs_out(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo before; sleep 1000", timeout_s=0.3)
    assert (result.limit, result.exit_code, result.stdout) == ("time", 137, b"before\n")


@needs_bubblewrap
async def test_background_processes_live_until_the_end() -> None:
    sandbox = await open_bwrap(SMALL)
    code = "python3 -m http.server 8000 --bind 127.0.0.1 > /dev/null 2>&1 &"
    await sandbox.exec(code)
    fetch = "for i in $(seq 300); do curl -sf http://127.0.0.1:8000/ && break; sleep 0.05; done"
    assert b"Directory listing" in (await sandbox.exec(fetch)).stdout
    await sandbox.close()


@needs_bubblewrap
async def test_odd_files_stop_nobody() -> None:
    sandbox = await open_bwrap(SMALL)
    await sandbox.exec("mkfifo pipe; ln -s loop loop; ln -s /dev/zero zero")
    for name in ("pipe", "loop", "zero"):
        with pytest.raises(OSError):  # noqa: PT011 - EINVAL, ELOOP
            await sandbox.read(f"/workspace/{name}")
    with pytest.raises(OSError):  # noqa: PT011
        await sandbox.write("/workspace/pipe", b"x")
    await sandbox.exec("head -c 3000000 /dev/zero > big")
    with pytest.raises(OSError, match="is larger than allowed"):
        await sandbox.snapshot(["/workspace"], max_bytes=1 << 20)
    with pytest.raises(OSError, match="ReadError"):
        await sandbox.upload(b"no archive")
    assert (await sandbox.exec("echo alive")).stdout == b"alive\n"
    await sandbox.close()


@needs_bubblewrap
async def test_a_command_that_nobody_waits_for_any_more_is_ended() -> None:
    sandbox = await open_bwrap(SMALL)
    task = asyncio.create_task(sandbox.exec("touch began; sleep 1000", timeout_s=1000))
    while b"began" not in (await sandbox.exec("ls")).stdout:
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while (await sandbox.exec("pgrep sleep")).stdout:
        pass
    await sandbox.close()


@needs_bubblewrap
async def test_what_is_seen_read_only_and_an_image_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("seen")
    spec = replace(SMALL, read_only=((str(tmp_path / "data"), "/data"),), directories=("/app",))
    sandbox = await open_bwrap(spec)
    result = await sandbox.exec(
        "cat /data/file; echo x > /data/file; touch /app/made /made && ls /app"
    )
    assert result.stdout == b"seenmade\n"
    assert b"Read-only file system" in result.stderr
    await sandbox.close()
    with pytest.raises(UserError, match="no such path"):
        await open_bwrap(replace(SMALL, read_only=((str(tmp_path / "gone"), "/data"),)))


@needs_bubblewrap
async def test_an_image_is_the_whole_root(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "workspace").mkdir(parents=True)
    (image / "workspace" / "of-the-image").write_text("there")
    for name in ("usr", "lib", "lib64", "bin"):
        (image / name).mkdir()
    sandbox = await open_bwrap(replace(SMALL, image=str(image)))
    assert await sandbox.read("/workspace/of-the-image") == b"there"
    await sandbox.write("/workspace/of-the-image", b"changed")
    assert await sandbox.read("/workspace/of-the-image") == b"changed"
    assert (image / "workspace" / "of-the-image").read_text() == "there"
    assert (await sandbox.exec(["/usr/bin/env"])).exit_code == 126
    await sandbox.snapshot(["/workspace"])
    await sandbox.close()


@needs_bubblewrap
async def test_without_cgroups_the_sum_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandbox.bwrap.make_cgroup", lambda name, quotas: None)
    sandbox = await open_bwrap(SMALL)
    one = await sandbox.exec(["python3", "-c", "x = bytearray(1 << 30)"])
    assert b"MemoryError" in one.stderr
    many = "python3 -c 'x = bytearray(100 << 20); import time; time.sleep(20)'"
    result = await sandbox.exec(" & ".join([many] * 4) + " & wait", timeout_s=30)
    assert result.limit == "memory"
    bomb = await sandbox.exec(":(){ :|:& };: ; sleep 0.1", timeout_s=3)
    assert bomb.seconds < 30
    await sandbox.end_processes()
    assert (await sandbox.exec("echo alive")).stdout == b"alive\n"
    await sandbox.close()


@needs_bubblewrap
async def test_a_pool_has_them_ready() -> None:
    pool = SandboxPool(open_bwrap, warm=2, specs=1)
    first = await pool.take(SMALL)
    await pool.settle()
    second, third = await pool.take(SMALL), await pool.take(SMALL)
    assert (pool.taken, pool.ready_when_taken) == (3, 2)
    assert len({id(s) for s in (first, second, third)}) == 3
    await pool.settle()
    other = replace(SMALL, workdir="/elsewhere")
    fourth = await pool.take(other)
    assert (await fourth.exec("pwd")).stdout == b"/elsewhere\n"
    await pool.settle()
    await pool.close()
    for sandbox in (first, second, third, fourth):
        assert (await sandbox.exec("echo alive")).stdout == b"alive\n"
        await sandbox.close()


async def test_a_pools_failed_start_is_told_to_who_takes() -> None:
    pool = SandboxPool(open_bwrap, warm=1)
    broken = replace(SMALL, network=("pypi.org",))
    for _ in range(2):
        with pytest.raises(UserError, match=r"pypi.org.*not a list"):
            await pool.take(broken)
    await pool.close()


def test_a_tasks_resources_come_before_the_defaults() -> None:
    rules = task_rules({"resources": {"memory_mb": 100, "processes": 7}})
    default = Quotas(disk_bytes=5)
    assert quotas_of(rules, default) == replace(default, memory_bytes=100 << 20, processes=7)


def test_cgroups_that_cannot_be_made_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlframe.sandbox.cgroups._parents", lambda: {})
    assert make_cgroup("rlframe-test", Quotas()) is None


def test_groups_of_killed_runs_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with a process stay: the kernel refuses."""
    left = make_cgroup(f"{cgroups.PREFIX}left-{os.getpid()}", Quotas())
    used = make_cgroup(f"{cgroups.PREFIX}used-{os.getpid()}", Quotas())
    if left is None or used is None:
        pytest.skip("there are no cgroups for us to make")
    cgroups.sweep()
    assert all(Path(d).is_dir() for d in left.join), "too young"
    monkeypatch.setattr(cgroups, "STALE_S", 0.0)
    # Only these: another run's sandbox may be about to start.
    monkeypatch.setattr(cgroups, "PREFIX", f"{cgroups.PREFIX}[lu]*-{os.getpid()}")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        for directory in used.join:
            (Path(directory) / "cgroup.procs").write_text(str(sleeper.pid))
        assert cgroups.sweep() == len(left.join)
        assert not any(Path(d).exists() for d in left.join)
        assert all(Path(d).is_dir() for d in used.join)
    finally:
        sleeper.kill()
        sleeper.wait()
        used.remove()
