"""What a task wants its sandbox to be, whatever the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlframe.errors import UserError
from rlframe.sandbox.limits import Quotas
from rlframe.task_rules import EVERY_HOST, TaskRules

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Hashable, so that sandboxes of one spec can stand ready (`envs.sandbox.pool`)."""

    image: str = ""
    """bwrap: a directory with a root file system; empty: this machine's own /usr and /opt. docker, remote:
    the image's or template's name."""
    workdir: str = "/workspace"
    directories: tuple[str, ...] = ()
    """Made writable besides `workdir` and `home`."""
    read_only: tuple[tuple[str, str], ...] = ()
    """(path outside, path inside) of files and directories to be seen."""
    environment: tuple[tuple[str, str], ...] = ()
    quotas: Quotas = Quotas()
    network: tuple[str, ...] = ()
    """Hosts that may be reached: none, or `("*",)`, where a backend can."""
    model_socket: str = ""
    """Unix socket of the gateway: bound in, and port `model_port` of loopback stands before it."""
    model_port: int = 8080

    @property
    def home(self) -> str:
        return "/home/agent"

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a command finds; nothing of ours."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": self.home,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **dict(self.environment),
            **(more or {}),
        }


def quotas_of(rules: TaskRules, default: Quotas) -> Quotas:
    """The task's own amounts, the defaults for what it doesn't say."""
    given = rules.resources
    return Quotas(
        memory_bytes=given.memory_mb * MIB or default.memory_bytes,
        disk_bytes=given.disk_mb * MIB or default.disk_bytes,
        files=default.files,
        processes=given.processes or default.processes,
        cpus=given.cpus or default.cpus,
    )


@dataclass(frozen=True, slots=True)
class Ports:
    """What a backend can do about the network, for a message that says it."""

    backend: str
    allowed: tuple[tuple[str, ...], ...] = field(default=((), (EVERY_HOST,)))

    def check(self, network: tuple[str, ...]) -> None:
        """UserError for an allow list: no backend here filters by host."""
        if network not in self.allowed:
            raise UserError(
                f"rules.network={list(network)}: the {self.backend} sandbox allows no host (the "
                "default) or every host ('*'), not a list of them"
            )


def existing(path: str) -> Path:
    found = Path(path)
    if not found.exists():
        raise UserError(f"a sandbox needs '{path}', and there is no such path")
    return found
