"""Memory, processes and CPU of all of a sandbox's processes together, where this machine lets us.

cgroup v1 with writable `memory` and `pids` (root on most virtual machines), or v2 with both delegated to
our own group. Elsewhere `memory_watch` and process limits take their place.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlframe.sandbox.limits import Quotas

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
REMOVE_TRIES, REMOVE_EVERY_S = 200, 0.005
NEEDED = ("memory", "pids")
PREFIX = "rlframe-"
STALE_S = 60.0
"""A group older than this without a process is nobody's: its sandbox's first process joins at once."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One sandbox's groups: under v1 a directory for each controller, under v2 one."""

    directories: Mapping[str, Path]
    """By controller."""

    @property
    def join(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(path) for path in self.directories.values()))

    def out_of_memory(self) -> int:
        """How many processes the kernel has ended for want of memory."""
        memory = self.directories["memory"]
        events = memory / "memory.oom_control"
        return _counter(events if events.exists() else memory / "memory.events", "oom_kill")

    def refused_forks(self) -> int:
        return _counter(self.directories["pids"] / "pids.events", "max")

    def remove(self) -> None:
        """Once all processes are gone; the kernel may take a moment to know."""
        for directory in self.join:
            for _ in range(REMOVE_TRIES):
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(REMOVE_EVERY_S)
                else:
                    break


def make_cgroup(name: str, quotas: Quotas) -> Cgroup | None:
    """None where there are no groups for us to make. The first of a process sweeps what killed runs left."""
    parents = _parents()
    _sweep_once()
    if any(controller not in parents for controller in NEEDED):
        return None
    made: dict[str, Path] = {}
    try:
        for controller, parent in parents.items():
            made[controller] = parent / name
            with contextlib.suppress(FileExistsError):
                made[controller].mkdir()
        group = Cgroup(made)
        _limit(group, quotas)
    except OSError:
        Cgroup(made).remove()
        return None
    return group


@cache
def _sweep_once() -> None:
    sweep()


def sweep() -> int:
    """Removes our groups that have no process any more; how many. The kernel keeps those that have one."""
    removed = 0
    for parent in _parents().values():
        for directory in parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - directory.stat().st_mtime >= STALE_S:
                    directory.rmdir()
                    removed += 1
    return removed


def _limit(group: Cgroup, quotas: Quotas) -> None:
    memory, cpu = group.directories["memory"], group.directories.get("cpu")
    old = (memory / "memory.limit_in_bytes").exists()
    (memory / ("memory.limit_in_bytes" if old else "memory.max")).write_text(
        str(quotas.memory_bytes)
    )
    swap = memory / ("memory.memsw.limit_in_bytes" if old else "memory.swap.max")
    with contextlib.suppress(OSError):
        swap.write_text(str(quotas.memory_bytes if old else 0))
    (group.directories["pids"] / "pids.max").write_text(str(quotas.processes))
    if cpu is not None:
        quota = max(int(quotas.cpus * PERIOD_US), 1000)
        if (cpu / "cpu.cfs_quota_us").exists():
            (cpu / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (cpu / "cpu.max").write_text(f"{quota} {PERIOD_US}")


def _parents() -> dict[str, Path]:
    """Our own group's directory for each controller in which we may make others."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            directory = ROOT / path.lstrip("/")
            enabled = _text(directory / "cgroup.subtree_control").split()
            found |= {c: directory for c in ("memory", "pids", "cpu") if c in enabled}
        for controller in controllers.split(","):
            if controller in ("memory", "pids", "cpu"):
                found[controller] = ROOT / controllers / path.lstrip("/")
    return {c: path for c, path in found.items() if os.access(path, os.W_OK)}


def _counter(file: Path, name: str) -> int:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
