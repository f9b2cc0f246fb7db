"""Task folders in Harbor's format without Harbor: ours are solved by their solutions; broken ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandboxes import needs_bubblewrap

from envs.adapters.harbor import HarborSource
from envs.adapters.harbor_folder import read_folder
from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import InfraFault, TaskFault, UserError
from rlframe.interfaces import StepResult
from rlframe.types import Task

OURS = Path(__file__).parents[2] / "examples" / "terminal_tasks"
NAMES = sorted(path.name for path in OURS.iterdir() if path.is_dir())


def source_of(directory: Path, **more: object) -> HarborSource:
    source = make_source("harbor", {"directory": str(directory), **more}, seed=0, held_out=1)
    assert isinstance(source, HarborSource)
    return source


def tasks_of(source: HarborSource, count: int) -> dict[str, Task]:
    tasks = [*(source.train_task(i) for i in range(count - 1)), *source.held_out_tasks()]
    return {task.id.rpartition("/")[2]: task for task in tasks}


async def attempt(source: HarborSource, task: Task, command: str) -> StepResult:
    env = source.make(task)
    await env.start()
    try:
        call = {"id": "1", "name": "bash", "arguments": {"command": command}}
        result = await env.act({"role": "assistant", "content": "", "tool_calls": [call]})
        assert not result.done
        return await env.act({"role": "assistant", "content": "done", "tool_calls": []})
    finally:
        await env.close()


def test_our_folders_are_a_source() -> None:
    source = source_of(OURS)
    check_source(source, name="harbor")
    assert sorted(tasks_of(source, len(NAMES))) == NAMES
    with pytest.raises(UserError, match="at least one must be left"):
        make_source("harbor", {"directory": str(OURS)}, seed=0, held_out=99)


@needs_bubblewrap
@pytest.mark.parametrize("name", NAMES)
async def test_solutions_pass_and_nothing_does_not(name: str) -> None:
    source = source_of(OURS)
    task = tasks_of(source, len(NAMES))[name]
    solution = (OURS / name / "solution" / "solve.sh").read_text()
    solved = await attempt(source, task, f"set -e\n{solution}")
    assert solved.reward == 1.0, solved.info
    idle = await attempt(source, task, "ls -a /tests /solution; find / -name test.sh 2> /dev/null")
    assert idle.reward == 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A smallest task, and another to be held out."""
    for name in ("one", "other"):
        place = tmp_path / name
        (place / "tests").mkdir(parents=True)
        (place / "environment").mkdir()
        (place / "task.toml").write_text("[verifier]\ntimeout_sec = 2\n")
        (place / "instruction.md").write_text("Do it.")
        (place / "tests" / "test.sh").write_text(
            "cat done > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt"
        )
    return tmp_path / "one"


@needs_bubblewrap
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "exit 1.*wrote no reward"),
        ("kill -SEGV $$", "exit 139.*wrote no reward"),
        ("sleep 100", r"the verifier's time \(2 s\) was up"),
        ("echo nan > /logs/verifier/reward.txt", "reward=nan is no finite number"),
        ("echo inf > /logs/verifier/reward.txt", "reward=inf is no finite number"),
        ("echo perfect > /logs/verifier/reward.txt", r"'perfect\\n', no number"),
        (r"printf '\377' > /logs/verifier/reward.txt", "reward.txt: .*decode"),
        ('echo \'{"a": "b"}\' > /logs/verifier/reward.json', "a='b' is no finite number"),
        ("echo '{' > /logs/verifier/reward.json", "no number"),
        ("mkdir /logs/verifier/reward.json", "reward.json: .*directory"),
    ],
)
async def test_a_broken_verifier_is_the_tasks_fault(folder: Path, script: str, said: str) -> None:
    (folder / "tests" / "test.sh").write_text(script)
    source = source_of(folder.parent)
    with pytest.raises(TaskFault, match=f"(?s)task 'one'.*{said}"):
        await attempt(source, source.train_task(0), "true")


@pytest.mark.parametrize("missing", ["task.toml", "instruction.md", "tests/test.sh"])
async def test_a_folder_with_missing_parts_fails_alone(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    source = source_of(folder.parent)
    check_source(source, name="harbor")
    task = source.train_task(0)
    with pytest.raises(TaskFault, match=f"task 'one' lacks {missing}"):
        await source.make(task).start()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[verifier", "task.toml"),
        ("[verifier]\ntimeout_sec = 'long'", "timeout_sec='long' is no amount"),
        ("verifier = 3", r"\[verifier\] is no table"),
        ("[environment]\nmemory_mb = -1", "memory_mb=-1 is no amount"),
    ],
)
def test_wrong_settings_are_named(folder: Path, text: str, said: str) -> None:
    (folder / "task.toml").write_text(text)
    with pytest.raises(TaskFault, match=f"task 'one'.*{said}"):
        read_folder(folder)


@needs_bubblewrap
async def test_an_absent_image_is_infrastructure(folder: Path) -> None:
    source = source_of(folder.parent, images={"one": str(folder / "no-image")})
    with pytest.raises(InfraFault, match=r"image .* is absent"):
        await source.make(source.train_task(0)).start()


@needs_bubblewrap
async def test_a_dockerfile_is_followed_as_far_as_it_goes(folder: Path) -> None:
    environment = folder / "environment"
    (environment / "data").mkdir()
    (environment / "data" / "a b").write_text("1")
    (environment / "one.txt").write_text("2")
    (environment / "Dockerfile").write_text(
        "# a comment\nFROM x\nRUN apt-get install \\\n  y\nWORKDIR /srv/app\n"
        'ENV A=1 B="two words"\nENV C three\nCOPY --chown=a one.txt ./\nCOPY data /data/\nUSER a\n'
    )
    harbor = read_folder(folder)
    assert harbor.skipped_steps == ("RUN apt-get install    y", "USER a")
    source = source_of(folder.parent)
    command = 'test "$A$B$C" = "1two wordsthree" && test -f "/data/a b" && cat one.txt > done'
    result = await attempt(source, source.train_task(0), command)
    assert result.reward == 2.0
    (environment / "Dockerfile").write_text("FROM x\nCOPY nothing /a\n")
    with pytest.raises(TaskFault, match="environment/nothing is to be copied, and absent"):
        await source.make(source.train_task(0)).start()
