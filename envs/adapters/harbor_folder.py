"""A task folder in Harbor's format, read without Harbor and without Docker.

    task.toml              [agent] timeout_sec, [verifier] timeout_sec, [environment] cpus, memory_mb, ...
    instruction.md
    environment/           files; a Dockerfile's WORKDIR, ENV and COPY are followed
    tests/test.sh          writes /logs/verifier/reward.txt (a number) or reward.json (names -> numbers)
    solution/solve.sh      optional

A Dockerfile's RUN lines are not run: they need the network and root. A task that lives from them needs its
image's root file system (`env.args.images`).
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlframe.errors import TaskFault, UserError
from rlframe.task_rules import EVERY_HOST, Resources, TaskRules

DEFAULT_WORKDIR = "/app"
NEEDED = ("task.toml", "instruction.md", "tests/test.sh")


@dataclass(frozen=True, slots=True)
class HarborTask:
    """What the folder says."""

    name: str
    folder: Path
    instruction: str
    workdir: str
    rules: TaskRules
    agent_timeout_s: float
    verifier_timeout_s: float
    copies: tuple[tuple[str, str], ...]
    """(path below environment/, place inside)."""
    environment: Mapping[str, str]
    skipped_steps: tuple[str, ...] = field(default=())
    """Lines of the Dockerfile that were not followed."""

    def files(self, part: str, place: str) -> dict[str, bytes]:
        """Of the folder's `part`, by their paths below `place` inside."""
        root = self.folder / part
        return {
            f"{place}/{path.relative_to(root)}": path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    def environment_files(self) -> dict[str, bytes]:
        """What the Dockerfile copies, by path inside; without one: everything in environment/."""
        root = self.folder / "environment"
        if not (root / "Dockerfile").is_file():
            return self.files("environment", self.workdir)
        found: dict[str, bytes] = {}
        for source, place in self.copies:
            path = (root / source).resolve()
            if not path.is_relative_to(root.resolve()) or not path.exists():
                raise TaskFault(
                    f"task '{self.name}': environment/{source} is to be copied, and absent"
                )
            if path.is_dir():
                found |= self.files(f"environment/{source}", place.rstrip("/"))
            else:
                target = f"{place}{path.name}" if place.endswith("/") else place
                found[target] = path.read_bytes()
        found.pop(f"{self.workdir}/Dockerfile", None)
        return found


def read_folder(folder: Path) -> HarborTask:
    """Raises TaskFault, naming what the folder lacks or has wrong."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise TaskFault(f"task '{folder.name}' lacks {', '.join(missing)}")
    try:
        settings = tomllib.loads((folder / "task.toml").read_text())
        instruction = (folder / "instruction.md").read_text()
    except (ValueError, OSError) as error:
        raise TaskFault(f"task '{folder.name}': task.toml or instruction.md: {error}") from error
    dockerfile = folder / "environment" / "Dockerfile"
    steps = _docker_steps(dockerfile.read_text()) if dockerfile.is_file() else []
    workdir = next((a for word, a in reversed(steps) if word == "WORKDIR"), DEFAULT_WORKDIR)
    environment = _table(settings, "environment", folder)
    return HarborTask(
        name=folder.name,
        folder=folder,
        instruction=instruction,
        workdir=workdir,
        rules=_rules(environment, folder),
        agent_timeout_s=_number(_table(settings, "agent", folder), "timeout_sec", 600.0, folder),
        verifier_timeout_s=_number(
            _table(settings, "verifier", folder), "timeout_sec", 300.0, folder
        ),
        copies=tuple(
            copy for word, a in steps if word in ("COPY", "ADD") for copy in _copies(a, workdir)
        ),
        environment=dict(pair for word, a in steps if word == "ENV" for pair in _pairs(a)),
        skipped_steps=tuple(
            f"{w} {a}" for w, a in steps if w in ("RUN", "USER", "ENTRYPOINT", "CMD")
        ),
    )


def _table(settings: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    table = settings.get(name, {})
    if not isinstance(table, Mapping):
        raise TaskFault(f"task '{folder.name}': task.toml: [{name}] is no table")
    return table


def _number(table: Mapping[str, Any], key: str, default: float, folder: Path) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise TaskFault(f"task '{folder.name}': task.toml: {key}={value!r} is no amount")
    return float(value)


def _rules(environment: Mapping[str, Any], folder: Path) -> TaskRules:
    public = environment.get("network_mode", "no-network") == "public" or environment.get(
        "allow_internet", False
    )
    return TaskRules(
        protected_paths=(
            "/tests",
            "/tests/**",
            "/logs/verifier",
            "/logs/verifier/**",
            "/solution/**",
        ),
        network=(EVERY_HOST,) if public else (),
        resources=Resources(
            cpus=_number(environment, "cpus", 0, folder),
            memory_mb=int(_number(environment, "memory_mb", 0, folder)),
            disk_mb=min(int(_number(environment, "storage_mb", 0, folder)), 4096),
        ),
    )


def _docker_steps(text: str) -> list[tuple[str, str]]:
    """(instruction, the rest) with continued lines joined."""
    joined = re.sub(r"\\\s*\n", " ", text)
    lines = [line.strip() for line in joined.splitlines()]
    parts = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return [(part[0].upper(), part[1] if len(part) > 1 else "") for part in parts]


def _copies(arguments: str, workdir: str) -> list[tuple[str, str]]:
    words = [word for word in shlex.split(arguments) if not word.startswith("--")]
    if len(words) < 2:
        return []
    *sources, place = words
    if not place.startswith("/"):
        place = f"{workdir}/{place}".replace("/./", "/").removesuffix("/.") + (
            "/" if place in (".", "./") else ""
        )
    return [(source.removeprefix("./") or ".", place) for source in sources]


def _pairs(arguments: str) -> list[tuple[str, str]]:
    words = shlex.split(arguments)
    if words and "=" not in words[0]:
        return [(words[0], " ".join(words[1:]))]
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def find_folders(directory: str) -> list[Path]:
    """Folders with a task.toml or an instruction.md. UserError where there are none."""
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"env.args.directory={directory}: there is no such directory")
    found = sorted(
        path
        for path in root.iterdir()
        if any((path / name).is_file() for name in ("task.toml", "instruction.md"))
    )
    if not found:
        raise UserError(
            f"env.args.directory={directory}: has no task folders (with task.toml) in it"
        )
    return found
