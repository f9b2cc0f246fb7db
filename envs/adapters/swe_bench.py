"""`env.name=swe_bench`: instances of SWE-bench, from rows and mirrors of their repositories.

    rlframe train env.name=swe_bench env.args.instances=verified.parquet env.args.repositories=mirrors

`mirrors/OWNER__NAME` is a clone (bare or not) that has the instance's base commit. The agent works on a copy that holds
that commit and what came before, nothing later. What it leaves is taken as a diff, without the files of the test
patch, into a second sandbox with a clean copy; there the test patch is put and the tests run. The reward is 1 where
all of FAIL_TO_PASS and PASS_TO_PASS pass.

What the tests need besides the repository (Python, packages) is in the sandbox's image, or shown to it by
`env.args.read_only` and found by `env.args.environment`. A broken instance fails alone, with its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs import options
from envs.adapters.peer import python_with
from envs.adapters.swe_bench_grading import OWN_PARSERS, Swebench
from envs.adapters.swe_bench_instance import Instance, instance_of
from envs.adapters.swe_bench_work import Workplace, grade_instance, open_workplace
from envs.epochs import Epochs
from envs.sandbox.backends import BACKENDS
from envs.sandbox.spec import SandboxSpec
from envs.suites.dataset_files import open_rows
from envs.tools.tool import ToolSettings
from envs.tools.tool_env import SandboxToolEnv
from rlframe.errors import TaskFault, UserError
from rlframe.interfaces import Score
from rlframe.sandbox.limits import Quotas
from rlframe.sandbox.protocol import Sandbox
from rlframe.task_rules import TaskRules
from rlframe.types import Demonstration, Task

QUOTAS = Quotas(memory_bytes=4 << 30, disk_bytes=2 << 30, files=200_000, processes=256)
PROMPT = """In {workdir} is the source of {repo}. Solve this issue by changing the source; tests are not to be changed. \
Call submit when the work is done.

{issue}"""


@dataclass(frozen=True)
class SweBenchOptions:
    """`env.args` of `env.name=swe_bench`."""

    instances: str
    """JSONL or Parquet."""
    repositories: str
    images: dict[str, str] = field(default_factory=dict)
    """Instance's id -> image; `*` for all others."""
    read_only: dict[str, str] = field(default_factory=dict)
    """Path outside -> path inside."""
    environment: dict[str, str] = field(default_factory=dict)
    test_command: str = "python3 -m pytest -rA -p no:cacheprovider"
    """Where a row has no `eval_script`: the test patch's files are its arguments."""
    log_parser: str = "parse_log_pytest"
    """Where a row has none: swebench's names."""
    python: str = ""
    """One that has swebench."""
    backend: str = "bwrap"
    workdir: str = "/testbed"
    depth: int = 0
    """Commits of history that the agent sees; 0: all up to the base commit."""
    cache: str = "runs/swe_bench"
    call_timeout_s: float = 60.0
    test_timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        options.require(
            self.backend in BACKENDS, "env.args.backend", self.backend, " or ".join(BACKENDS)
        )


class SweBenchSource:
    """Satisfies `rlframe.interfaces.TaskSource`. The last `held_out` rows are held out."""

    def __init__(self, given: Mapping[str, Any], *, seed: int, held_out: int) -> None:
        self._options = chosen = options.parse(SweBenchOptions, given)
        self._rows = open_rows(chosen.instances, key="env.args.instances")
        if not 0 < held_out < len(self._rows):
            raise UserError(
                f"env.held_out={held_out}: '{chosen.instances}' has {len(self._rows)} instances; at least "
                "one must be left for training, and one held out"
            )
        self._epochs, self._count = Epochs(seed), held_out
        self._train = len(self._rows) - held_out
        self.grader = self._find_grader()

    def train_task(self, index: int) -> Task:
        epoch, row = self._epochs.row(index, count=self._train)
        return self._task(row, f"train/{epoch}")

    def held_out_tasks(self) -> Sequence[Task]:
        rows = range(self._train, self._train + self._count)
        return [self._task(row, "held_out") for row in rows]

    def make(self, task: Task) -> SandboxToolEnv:
        chosen, row = self._options, self._rows[task.data["row"]]
        place = Workplace(
            repositories=chosen.repositories,
            spec=self._spec(str(row.get("instance_id", ""))),
            opens=BACKENDS[chosen.backend],
            cache=chosen.cache,
            depth=chosen.depth,
            test_command=chosen.test_command,
            test_timeout_s=chosen.test_timeout_s,
            swebench=self.grader,
        )

        async def opens() -> Sandbox:
            return await open_workplace(place, self._instance(row))

        async def grade(sandbox: Sandbox, submitted: str) -> Score:
            return await grade_instance(place, self._instance(row), sandbox)

        settings = ToolSettings(workdir=chosen.workdir, timeout_s=chosen.call_timeout_s)
        return SandboxToolEnv(task.messages, opens, grade, settings=settings)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("env.name=swe_bench: has no demonstrations for supervised fine-tuning")

    def _instance(self, row: Mapping[str, Any]) -> Instance:
        return instance_of({**row, "log_parser": row.get("log_parser") or self._options.log_parser})

    def _find_grader(self) -> Swebench | None:
        """None where swebench is not installed, and every log can be read without."""
        try:
            return Swebench(python_with("swebench", self._options.python))
        except UserError as error:
            parsers = {str(row.get("log_parser") or self._options.log_parser) for row in self._rows}
            others = sorted(parsers - set(OWN_PARSERS))
            if self._options.python or others:
                raise UserError(
                    f"logs for {', '.join(others) or 'pytest'} can't be read: {error}"
                ) from error
            return None

    def _spec(self, name: str) -> SandboxSpec:
        chosen = self._options
        return SandboxSpec(
            image=chosen.images.get(name, chosen.images.get("*", "")),
            workdir=chosen.workdir,
            read_only=tuple(sorted(chosen.read_only.items())),
            environment=tuple(sorted(chosen.environment.items())),
            quotas=QUOTAS,
        )

    def _task(self, row: int, part: str) -> Task:
        """A broken instance is a task too: its attempts fail by its own fault."""
        workdir, name = self._options.workdir, str(self._rows[row].get("instance_id") or row)
        try:
            instance = self._instance(self._rows[row])
        except TaskFault as error:
            text, rules = f"(broken instance: {error})", TaskRules()
        else:
            text = PROMPT.format(
                workdir=workdir, repo=instance.repo, issue=instance.problem_statement
            )
            rules = TaskRules(
                protected_paths=tuple(f"{workdir}/{path}" for path in instance.new_test_files),
                read_only_paths=tuple(f"{workdir}/{path}" for path in instance.old_test_files),
                forbidden_sources=(f"github.com/{instance.repo}", "git:future"),
            )
        asked = ({"role": "user", "content": text},)
        return Task(f"{part}/{name}", "swe_bench", asked, {"row": row}, rules=rules)
