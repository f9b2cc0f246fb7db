"""SWE-bench instances from a repository made here: what the agent finds, what counts, whose fault is what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sandboxes import needs_bubblewrap
from swe_bench_rows import ID, MENDED, rows, source

from envs.adapters.peer import python_with
from envs.adapters.swe_bench import SweBenchSource
from envs.adapters.swe_bench_instance import instance_of, touched
from envs.source_check import check_source
from envs.tools.tool_env import SandboxToolEnv
from rlframe.errors import TaskFault, UserError
from rlframe.interfaces import StepResult
from rlframe.types import Task


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swe")


@pytest.fixture(scope="module")
def made(place: Path) -> Iterator[SweBenchSource]:
    """Logs are read by ours: the package, where it is installed, is out of sight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("envs.adapters.swe_bench.python_with", without_swebench)
        yield source(place, [*rows(place), *rows_that_end(place)])


def without_swebench(package: str, given: str = "", **_: Any) -> str:
    raise UserError(f"{package} is not installed")


def rows_that_end(place: Path) -> list[Mapping[str, Any]]:
    return [{"instance_id": "held-out"}]


def task_of(made: SweBenchSource, name: str) -> Task:
    return next(t for t in map(made.train_task, range(4)) if t.id.endswith(f"/{name}"))


async def attempt(made: SweBenchSource, name: str, *commands: str) -> tuple[list[str], StepResult]:
    env = made.make(task_of(made, name))
    assert isinstance(env, SandboxToolEnv)
    try:
        await env.start()
        calls = [
            {"id": str(number), "name": "bash", "arguments": {"command": command}}
            for number, command in enumerate(commands)
        ]
        said = await env.act({"role": "assistant", "content": "", "tool_calls": calls})
        end = {"id": "end", "name": "submit", "arguments": {}}
        result = await env.act({"role": "assistant", "content": "", "tool_calls": [end]})
        return [str(message["content"]) for message in said.messages], result
    finally:
        await env.close()


MEND = f"cat > sums.py <<'END'\n{MENDED}END"


def test_what_a_task_says(made: SweBenchSource) -> None:
    check_source(made, name="swe_bench")
    task = task_of(made, ID)
    assert "forgets the first number" in task.messages[0]["content"]
    assert task.rules.protected_paths == ("/testbed/tests/test_more.py",)
    assert task.rules.read_only_paths == ("/testbed/tests/test_sums.py",)
    assert task.rules.forbidden_sources == ("github.com/someone/sums", "git:future")


@needs_bubblewrap
async def test_the_fix_and_what_the_agent_finds(made: SweBenchSource) -> None:
    said, result = await attempt(
        made, ID, "git log --oneline --all; ls tests", "git fsck --lost-found; git remote", MEND
    )
    assert "a bug" in said[0]
    assert "the fix" not in said[0]
    assert "test_more" not in said[0]
    assert "dangling" not in said[1]
    assert (result.done, result.reward) == (True, 1.0), result.info
    assert result.info["fail_to_pass"] == [1, 1]
    assert result.info["pass_to_pass"] == [2, 2]


@needs_bubblewrap
@pytest.mark.parametrize(
    ("command", "reward", "expected"),
    [
        ("true", 0.0, {"diff": "empty"}),
        ("echo '# no fix' >> sums.py", 0.0, {"fail_to_pass": [0, 1], "pass_to_pass": [2, 2]}),
        # The tests are taken from the test patch, whatever the agent made of them.
        ("echo > tests/test_sums.py; echo 'def test_total(): pass' > tests/test_more.py", 0.0, {}),
        (f"rm tests/test_sums.py; {MEND}", 1.0, {"fail_to_pass": [1, 1]}),
        # A commit of its own, and files that are new.
        (f"{MEND}\nmv sums.py s.py; echo 'from s import *' > sums.py; git add -A; "
         "git -c user.name=a -c user.email=a@b commit -qm mine", 1.0, {}),
        ("echo 'raise ValueError' > sums.py", 0.0, {"fail_to_pass": [0, 1], "pass_to_pass": [0, 2]}),
        ("rm -rf .git", 0.0, {}),
    ],
)  # fmt: skip
async def test_what_counts(
    made: SweBenchSource, command: str, reward: float, expected: Mapping[str, Any]
) -> None:
    _, result = await attempt(made, ID, command)
    assert (result.done, result.reward) == (True, reward), result.info
    assert {key: result.info[key] for key in expected} == expected


@needs_bubblewrap
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "someone__sums-2",
            "'someone__sums-2' lacks problem_statement, test_patch, FAIL_TO_PASS, P",
        ),
        ("someone__sums-3", "rev-parse"),
        ("someone__sums-4", "there is no .*else__where"),
    ],
)
async def test_broken_instances_fail_alone(made: SweBenchSource, name: str, said: str) -> None:
    task = task_of(made, name)
    with pytest.raises(TaskFault, match=said):
        await made.make(task).start()
    if name.endswith("2"):
        assert "broken instance" in task.messages[0]["content"]


def test_rows_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = rows(tmp_path)[0]
    for key, value, said in (
        ("repo", "sums", "owner/name"),
        ("base_commit", "main; rm", "a commit's id"),
        ("FAIL_TO_PASS", "[1]", "list of tests' names"),
        ("FAIL_TO_PASS", "[]", "nothing to mend"),
        ("test_patch", "a", "no diff"),
    ):
        with pytest.raises(TaskFault, match=said):
            instance_of({**row, key: value})
    monkeypatch.setattr("envs.adapters.swe_bench.python_with", without_swebench)
    with pytest.raises(UserError, match=r"logs for parse_log_django .*swebench is not installed"):
        source(tmp_path, [{**row, "log_parser": "parse_log_django"}, row])
    with pytest.raises(UserError, match=r"env.args.python=/nowhere"):
        python_with("swebench", "/nowhere")


def test_touched() -> None:
    """Quoted names, spaces, new files, both sides of a renaming; not what a hunk adds."""
    patch = (
        'diff --git "a/t/\\303\\244.py" "b/t/\\303\\244.py"\nindex 1..2 100644\n--- x\n+++ y\n@@ -1 +1 @@\n'
        "diff --git a/a b.py b/a b.py\nnew file mode 100644\n--- /dev/null\n+++ b/a b.py\n@@ -0,0 +1 @@\n"
        "+diff --git a/not b/this\n"
        "diff --git a/old.py b/new.py\nsimilarity index 100%\nrename from old.py\nrename to new.py\n"
    )
    assert touched(patch) == [
        ("t/ä.py", False),
        ("a b.py", True),
        ("new.py", True),
        ("old.py", False),
    ]
