"""`env.name=code_repair`: an agent with tools in a sandbox mends a package; hidden tests in another judge.

The reward is 1 where every test that passes for the unbroken package passes, else 0. Of the agent's work only
the package's own Python files are taken over; they are put into a clean, broken package, and its tests over
them. What code under test can do to the run that tests it is the guard's and the diff scan's to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs import options
from envs.epochs import Epochs
from envs.sandbox.artifacts import Artifacts, tar_of
from envs.sandbox.backends import BACKENDS, Opens
from envs.sandbox.grading import graded
from envs.sandbox.spec import SandboxSpec, quotas_of
from envs.suites.code_repair.hidden_tests import (
    QUOTAS,
    WORKDIR,
    digest,
    grading_spec,
    run_hidden_tests,
)
from envs.suites.code_repair.packages import sdist_files
from envs.suites.code_repair.tasks import (
    RepairTask,
    manifest,
    package_of,
    repair_task,
    visible_files,
)
from envs.tools.tool import ToolSettings
from envs.tools.tool_env import SandboxToolEnv
from envs.tools.workspace_env import FORMS, SandboxWorkspaceEnv
from rlframe.errors import UserError
from rlframe.interfaces import Score
from rlframe.sandbox.protocol import Sandbox
from rlframe.task_rules import Resources, TaskRules
from rlframe.types import Demonstration, Task

SYSTEM = (
    "You are at work on a Python package in a Linux sandbox without network. Use the tools; call "
    "submit when the work is done."
)
PROMPT = """In {workdir} is the source of the Python package {name} {version}. A recent change broke it.

What was reported:
{report}

Find the bug in the package's source and mend it. The tests of the package are not here; they will be run
on what you leave. Change nothing else."""


@dataclass(frozen=True)
class CodeRepairOptions:
    """`env.args` of `env.name=code_repair`."""

    directory: str = "runs/code_repair"
    """What `scripts/build_code_repair.py` has made."""
    backend: str = "bwrap"
    call_timeout_s: float = 60.0
    max_result_chars: int = 16_000
    form: str = "tools"
    """`tools`, or `workspace`: for agent programs (`rollout=black_box`)."""

    def __post_init__(self) -> None:
        options.require(
            self.backend in BACKENDS, "env.args.backend", self.backend, " or ".join(BACKENDS)
        )
        options.require(self.form in FORMS, "env.args.form", self.form, " or ".join(FORMS))


class CodeRepairSource:
    """Satisfies `rlframe.interfaces.TaskSource`."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = options.parse(CodeRepairOptions, given)
        tasks = sorted(manifest(), key=lambda task: digest([task.id]))
        if not 0 < held_out < len(tasks):
            raise UserError(
                f"env.held_out={held_out}: code_repair has {len(tasks)} tasks; at least one must be "
                "left for training, and one for holding out"
            )
        self._held_out, self._train = tasks[:held_out], tasks[held_out:]
        self._opens: Opens = BACKENDS[self._options.backend]
        self._epochs = Epochs(seed)

    def train_task(self, index: int) -> Task:
        epoch, row = self._epochs.row(index, count=len(self._train))
        return self._task(self._train[row], f"train/{epoch}")

    def held_out_tasks(self) -> Sequence[Task]:
        return [self._task(task, "held_out") for task in self._held_out]

    def make(self, task: Task) -> SandboxToolEnv | SandboxWorkspaceEnv:
        env = self._tool_env(task)
        if self._options.form == "tools":
            return env
        return SandboxWorkspaceEnv(env, str(task.messages[-1]["content"]))

    def _tool_env(self, task: Task) -> SandboxToolEnv:
        repair = repair_task(task.data["repair"])
        chosen, quotas = self._options, quotas_of(task.rules, QUOTAS)

        async def opens() -> Sandbox:
            sandbox = await self._opens(SandboxSpec(workdir=WORKDIR, quotas=quotas))
            files = visible_files(repair, chosen.directory)
            await sandbox.upload(tar_of({f"{WORKDIR}/{path}": c for path, c in files.items()}))
            return sandbox

        async def grade(sandbox: Sandbox, submitted: str) -> Score:
            return await grade_repair(repair, sandbox, self._opens, chosen.directory)

        settings = ToolSettings(
            workdir=WORKDIR, timeout_s=chosen.call_timeout_s, max_chars=chosen.max_result_chars
        )
        return SandboxToolEnv(task.messages, opens, grade, settings=settings)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=code_repair: has no demonstrations for supervised fine-tuning")

    def _task(self, repair: RepairTask, part: str) -> Task:
        package = package_of(repair)
        report = repair.report.strip() or "Wrong results."
        prompt = PROMPT.format(
            workdir=WORKDIR, name=package.name, version=package.version, report=report
        )
        return Task(
            id=f"{part}/{repair.id}",
            domain="code_repair",
            messages=(
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": prompt},
            ),
            data={"repair": repair.id},
            rules=TaskRules(
                protected_paths=tuple(f"{WORKDIR}/{path}" for path in package.hidden)
                + tuple(f"{WORKDIR}/{path.rstrip('/')}/**" for path in package.hidden),
                forbidden_sources=(package.upstream, package.name),
                resources=Resources(
                    cpus=1.0,
                    memory_mb=QUOTAS.memory_bytes >> 20,
                    processes=QUOTAS.processes,
                    disk_mb=QUOTAS.disk_bytes >> 20,
                ),
            ),
        )


async def grade_repair(repair: RepairTask, agent: Sandbox, opens: Opens, directory: str) -> Score:
    """From the agent's sandbox to a score; see the module's docstring."""
    package, sdist = package_of(repair), sdist_files(directory, repair.package)
    clean = visible_files(repair, directory)

    def accept(path: str) -> bool:
        inner = path.removeprefix(f"{WORKDIR}/")
        editable = any(inner == e or inner.startswith(f"{e}/") for e in package.editable)
        return editable and inner.endswith(".py") and inner in clean

    async def opens_clean() -> Sandbox:
        sandbox = await opens(grading_spec(f"{directory}/tools"))
        await sandbox.upload(tar_of({f"{WORKDIR}/{path}": c for path, c in clean.items()}))
        return sandbox

    async def verify(sandbox: Sandbox, artifacts: Artifacts) -> Score:
        outcomes = await run_hidden_tests(sandbox, package, sdist, repair.tests)
        right = digest(outcomes.passed) == repair.passing_digest
        info = {
            "passed": len(outcomes.passed),
            "expected": repair.passing,
            "mended": len(set(repair.failing) & set(outcomes.passed)),
            "broken_by_bug": len(repair.failing),
        }
        return Score(float(right), info | ({"ended": outcomes.ended} if outcomes.ended else {}))

    paths = [f"{WORKDIR}/{path}" for path in package.editable]
    score = await graded(agent, paths=paths, accept=accept, opens=opens_clean, verify=verify)
    return score
