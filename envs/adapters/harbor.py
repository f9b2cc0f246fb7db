"""`env.name=harbor`: tasks in Harbor's format (Terminal-Bench 2 and others), run from their folders.

The agent works in one sandbox; its work directory is carried to a second, clean one, where the tests are
put to /tests and run. A folder with missing parts, a verifier that crashes, hangs or writes no number: the
task's fault, told in the attempt's error; other tasks go on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from envs import options
from envs.adapters.harbor_folder import HarborTask, find_folders, read_folder
from envs.sandbox.artifacts import Artifacts, tar_of
from envs.sandbox.backends import BACKENDS, Opens
from envs.sandbox.grading import graded
from envs.sandbox.spec import SandboxSpec, quotas_of
from envs.tools.tool import ToolSettings
from envs.tools.tool_env import SandboxToolEnv
from rlframe.errors import TaskFault, UserError
from rlframe.interfaces import Score
from rlframe.sandbox.limits import Quotas
from rlframe.sandbox.protocol import Sandbox
from rlframe.task_rules import TaskRules
from rlframe.types import Demonstration, Task

LOGS = "/logs/verifier"
EXECUTABLE = 0o755


@dataclass(frozen=True)
class HarborOptions:
    """`env.args` of `env.name=harbor`."""

    directory: str
    """Holds task folders."""
    images: dict[str, str] = field(default_factory=dict)
    """Task's name -> its image (for bwrap: a directory with a root file system); `*` for all others."""
    backend: str = "bwrap"

    def __post_init__(self) -> None:
        options.require(
            self.backend in BACKENDS, "env.args.backend", self.backend, " or ".join(BACKENDS)
        )


class HarborSource:
    """Satisfies `rlframe.interfaces.TaskSource`. The last `held_out` folders, by name, are held out."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(HarborOptions, given)
        folders = find_folders(self._options.directory)
        if not 0 < held_out < len(folders):
            raise UserError(
                f"env.held_out={held_out}: there are {len(folders)} task folders in "
                f"'{self._options.directory}'; at least one must be left for training, and one held out"
            )
        self._train, self._held_out = folders[:-held_out], folders[-held_out:]
        self._opens: Opens = BACKENDS[self._options.backend]

    def train_task(self, index: int) -> Task:
        epoch, position = divmod(index, len(self._train))
        return self._task(self._train[position], f"train/{epoch}")

    def held_out_tasks(self) -> Sequence[Task]:
        return [self._task(folder, "held_out") for folder in self._held_out]

    def make(self, task: Task) -> SandboxToolEnv:
        folder = Path(task.data["folder"])

        async def opens() -> Sandbox:
            harbor = read_folder(folder)
            return await open_task(harbor, self._spec(harbor), self._opens)

        async def grade(sandbox: Sandbox, submitted: str) -> Score:
            harbor = read_folder(folder)
            return await grade_task(harbor, self._spec(harbor), sandbox, self._opens)

        settings = ToolSettings(workdir=task.data.get("workdir", "/app"))
        return SandboxToolEnv(task.messages, opens, grade, settings=settings)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=harbor: has no demonstrations for supervised fine-tuning")

    def _spec(self, harbor: HarborTask) -> SandboxSpec:
        images = self._options.images
        return SandboxSpec(
            image=images.get(harbor.name, images.get("*", "")),
            workdir=harbor.workdir,
            directories=("/tests", "/logs", "/solution"),
            environment=tuple(sorted(harbor.environment.items())),
            network=harbor.rules.network,
            quotas=quotas_of(harbor.rules, Quotas()),
        )

    def _task(self, folder: Path, part: str) -> Task:
        """A broken folder is a task too: its attempts fail by its own fault."""
        data: dict[str, Any] = {"folder": str(folder)}
        try:
            harbor = read_folder(folder)
        except TaskFault as error:
            text, rules = f"(broken task: {error})", TaskRules()
        else:
            text, rules = harbor.instruction, harbor.rules
            data |= {"workdir": harbor.workdir, "skipped_steps": list(harbor.skipped_steps)}
        return Task(
            id=f"{part}/{folder.name}",
            domain="harbor",
            messages=({"role": "user", "content": text},),
            data=data,
            rules=rules,
        )


async def open_task(harbor: HarborTask, spec: SandboxSpec, opens: Opens) -> Sandbox:
    """The agent's sandbox: no tests, no solution."""
    sandbox = await opens(spec)
    await sandbox.upload(tar_of(harbor.environment_files()))
    return sandbox


async def grade_task(harbor: HarborTask, spec: SandboxSpec, agent: Sandbox, opens: Opens) -> Score:
    """The work directory, whole, into a second sandbox; then the tests, over whatever lies there."""

    async def verify(sandbox: Sandbox, artifacts: Artifacts) -> Score:
        tests = harbor.files("tests", "/tests")
        await sandbox.upload(tar_of(tests, modes=dict.fromkeys(tests, EXECUTABLE)))
        await sandbox.exec(["mkdir", "-p", LOGS])
        result = await sandbox.exec(
            ["/bin/bash", "/tests/test.sh"], timeout_s=harbor.verifier_timeout_s
        )
        if result.timed_out:
            raise TaskFault(
                f"task '{harbor.name}': the verifier's time ({harbor.verifier_timeout_s:g} s) was up"
            )
        tail = (result.stdout + result.stderr)[-300:].decode(errors="replace")
        return await read_reward(sandbox, f"task '{harbor.name}' (exit {result.exit_code}: {tail})")

    return await graded(
        agent,
        paths=[harbor.workdir],
        accept=lambda path: True,
        opens=lambda: opens(replace(spec, network=())),
        verify=verify,
    )


async def read_reward(sandbox: Sandbox, whose: str) -> Score:
    """reward.json before reward.txt. TaskFault where there is no finite number."""
    for name in ("reward.json", "reward.txt"):
        try:
            text = (await sandbox.read(f"{LOGS}/{name}", max_bytes=1 << 16)).decode()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise TaskFault(f"{whose}: {name}: {error}") from error
        return _parsed(text, name, whose)
    raise TaskFault(f"{whose}: the verifier wrote no reward")


def _parsed(text: str, name: str, whose: str) -> Score:
    try:
        said = json.loads(text) if name.endswith("json") else float(text)
    except ValueError:
        raise TaskFault(f"{whose}: {name} is {text[:80]!r}, no number") from None
    numbers = dict(said) if isinstance(said, Mapping) else {"reward": said}
    for key, value in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise TaskFault(f"{whose}: {name}: {key}={value!r} is no finite number")
    reward = (
        numbers["reward"] if "reward" in numbers else sum(numbers.values()) / max(len(numbers), 1)
    )
    return Score(float(reward), {"rewards": numbers})
