"""Code repair: every task's hidden tests fail before and pass after the reference fix, in the sandbox.

The sources are downloaded by scripts/build_code_repair.py; without them these tests are skipped. A sample runs
always, all tasks with the slow tests.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandboxes import needs_bubblewrap

from envs.registry import make_source
from envs.source_check import check_source
from envs.suites.code_repair.mutations import Mutation, mutations
from envs.suites.code_repair.packages import PACKAGES, sdist_files
from envs.suites.code_repair.tasks import RepairTask, broken_source, manifest, visible_files
from rlframe.errors import UserError
from rlframe.interfaces import StepResult

BUILT = Path(__file__).parents[2] / "runs" / "code_repair"
needs_sources = pytest.mark.skipif(
    not (BUILT / "tools" / "pytest").is_dir(), reason="scripts/build_code_repair.py has not run"
)
SAMPLE = [task for task in manifest() if task.package in ("inflection", "xmltodict")][::3]


async def attempt(repair: RepairTask, command: str) -> StepResult:
    """One bash command, then the end."""
    source = make_source("code_repair", {"directory": str(BUILT)}, seed=0, held_out=1)
    tasks = [source.train_task(i) for i in range(len(manifest()) - 1)] + [*source.held_out_tasks()]
    env = source.make(next(task for task in tasks if task.data["repair"] == repair.id))
    await env.start()
    try:
        call = {"id": "1", "name": "bash", "arguments": {"command": command}}
        await env.act({"role": "assistant", "content": "", "tool_calls": [call]})
        return await env.act({"role": "assistant", "content": "done", "tool_calls": []})
    finally:
        await env.close()


def fix(repair: RepairTask) -> str:
    """The reference: the original file."""
    content = sdist_files(str(BUILT), repair.package)[repair.file].decode()
    return f"cat > {repair.file} <<'END_OF_FILE'\n{content}END_OF_FILE\n"


async def fails_before_and_passes_after(repair: RepairTask) -> None:
    before = await attempt(repair, "true")
    assert before.reward == 0.0
    assert before.info["passed"] == repair.passing - len(repair.failing)
    assert before.info["mended"] == 0
    after = await attempt(repair, fix(repair))
    assert after.reward == 1.0, after.info
    assert after.info["passed"] == after.info["expected"] == repair.passing


@needs_bubblewrap
@needs_sources
@pytest.mark.parametrize("repair", SAMPLE, ids=lambda task: task.id)
async def test_a_sample_fails_before_and_passes_after(repair: RepairTask) -> None:
    await fails_before_and_passes_after(repair)


@needs_bubblewrap
@needs_sources
@pytest.mark.slow
@pytest.mark.parametrize("repair", manifest(), ids=lambda task: task.id)
async def test_every_task_fails_before_and_passes_after(repair: RepairTask) -> None:
    await fails_before_and_passes_after(repair)


@needs_bubblewrap
@needs_sources
async def test_grading_is_deterministic_and_takes_nothing_but_the_package() -> None:
    repair = SAMPLE[0]
    package = PACKAGES[repair.package]
    cheat = (
        "printf 'import os\\nos._exit(0)\\n' > conftest.py; mkdir -p tests; "
        f"cp conftest.py sitecustomize.py; cp conftest.py {package.editable[0]}/sitecustomize.py; "
        "ln -sf /etc/passwd setup.py"
    )
    first = await attempt(repair, cheat)
    second = await attempt(repair, cheat)
    assert first.reward == second.reward == 0.0
    assert first.info["passed"] == second.info["passed"] == repair.passing - len(repair.failing)
    early = await attempt(repair, f"printf 'import os\\nos._exit(0)\\n' > {repair.file}")
    assert early.reward == 0.0
    assert "no report" in early.info["ended"]
    gone = await attempt(repair, "rm -r /workspace/*")
    assert gone.reward == 0.0


@needs_sources
@pytest.mark.parametrize("repair", manifest(), ids=lambda task: task.id)
def test_the_agent_sees_the_bug_and_no_tests(repair: RepairTask) -> None:
    package, sdist = PACKAGES[repair.package], sdist_files(str(BUILT), repair.package)
    files = visible_files(repair, str(BUILT))
    assert files[repair.file] == broken_source(repair, sdist) != sdist[repair.file]
    names = {Path(path).name for path in files}
    assert not any(name.startswith("test_") and name.endswith(".py") for name in names)
    assert {path.split("/")[0] for path in files} >= {package.editable[0]}
    assert repair.failing


def test_the_suite_is_large_enough() -> None:
    assert len(manifest()) >= 40
    assert len({task.package for task in manifest()}) >= 10
    assert len({task.id for task in manifest()}) == len(manifest())
    places = {(task.file, task.mutation.function) for task in manifest()}
    assert len(places) == len(manifest())


@needs_sources
def test_the_source_is_one() -> None:
    source = make_source("code_repair", {"directory": str(BUILT)}, seed=0, held_out=8)
    check_source(source, name="code_repair")
    task = source.train_task(0)
    assert any(path.endswith("/**") for path in task.rules.protected_paths)
    assert PACKAGES[manifest()[0].package].upstream.startswith("github.com/")
    assert task.rules.network == ()


def test_sources_that_are_absent_or_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no '.*roman-4.2.tar.gz'.*build_code_repair"):
        sdist_files(str(tmp_path), "roman")
    (tmp_path / "roman-4.2.tar.gz").write_bytes(b"other")
    with pytest.raises(UserError, match="has SHA-256"):
        sdist_files(str(tmp_path), "roman")


SOURCE = '''
LIMIT = 3
def f(a, b=1):
    """1 < 2"""
    if not a and b >= 2:
        return "é" + str(a - 1)
    def inner():
        return a == 7
    return [x for x in a if x in b][1:]
'''


def test_mutations_change_one_place_in_functions_alone() -> None:
    found = mutations(SOURCE)
    assert {(m.kind, m.before, m.after) for m in found} >= {
        ("negation", "not a", "a"),
        ("comparison", "b >= 2", "(b > 2)"),
        ("boolean", "not a and b >= 2", "(not a or b >= 2)"),
        ("arithmetic", "a - 1", "(a + 1)"),
        ("comparison", "a == 7", "(a != 7)"),
        ("comparison", "x in b", "(x not in b)"),
        ("number", "1", "2"),
    }
    assert not any(m.line in (2, 3, 4) for m in found)
    assert mutations(SOURCE) == found
    for mutation in found:
        changed = mutation.applied(SOURCE)
        ast.parse(changed)
        different = [
            number
            for number, pair in enumerate(
                zip(SOURCE.splitlines(), changed.splitlines(), strict=True), 1
            )
            if pair[0] != pair[1]
        ]
        assert different == [mutation.line]


@given(st.integers(1, 9), st.integers(0, 30))
def test_a_mutation_of_another_text_is_refused(line: int, column: int) -> None:
    mutation = Mutation("number", "f", line, column, "nowhere", "x")
    with pytest.raises(ValueError, match="has no 'nowhere'"):
        mutation.applied(SOURCE)
