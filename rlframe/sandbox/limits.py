"""What a sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one agent program's run, by its own process limits; None: no limit of ours."""

    timeout_s: float = 1800.0
    memory_bytes: int | None = None
    """Of address space: programs on Node and the JVM reserve far more than they use."""
    file_bytes: int | None = 1 << 30
    processes: int | None = None
    cpu_s: int | None = None

    def rlimits(self) -> dict[str, int]:
        named = {
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "processes": self.processes,
            "cpu_s": self.cpu_s,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Quotas:
    """Of a whole sandbox, all its processes together."""

    memory_bytes: int = 2 << 30
    disk_bytes: int = 1 << 30
    """Of all that is written in it; it lies in memory, and counts there too where there are cgroups."""
    files: int = 200_000
    """Made in it."""
    processes: int = 256
    """And threads."""
    cpus: float = 1.0
    """Held where there are cgroups."""
