"""Grading in a second sandbox, from plain files; sealed repositories."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from sandboxes import SMALL, needs_bubblewrap

from envs.sandbox.artifacts import Artifacts, artifacts_of, tar_of
from envs.sandbox.bwrap import open_bwrap
from envs.sandbox.git_seal import IN_PLACE, objects_beyond_head, sealed_copy
from envs.sandbox.grading import graded
from rlframe.errors import TaskFault
from rlframe.interfaces import Score
from rlframe.sandbox.protocol import Sandbox


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o6777
    return info


def test_only_plain_accepted_files_are_taken() -> None:
    archive = archive_of(
        (member("workspace/a.py"), b"a"),
        (member("workspace/../etc/passwd.py"), b"up"),
        (member("/workspace/b.py"), b"b"),
        (member("workspace/link.py", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("workspace/hard.py", tarfile.LNKTYPE, "workspace/a.py"), b""),
        (member("workspace/fifo.py", tarfile.FIFOTYPE), b""),
        (member("workspace/conftest.txt"), b"no"),
        (member("workspace", tarfile.DIRTYPE), b""),
    )
    artifacts = artifacts_of(archive, lambda path: path.endswith(".py"))
    assert artifacts.files == {"/workspace/a.py": b"a", "/workspace/b.py": b"b"}
    assert set(artifacts.modes.values()) == {0o755}
    assert len(artifacts.refused) == 5
    assert artifacts_of(artifacts.archive(), lambda path: True).files == artifacts.files
    with pytest.raises(ValueError, match="is no archive"):
        artifacts_of(b"x" * 2000, lambda path: True)


@needs_bubblewrap
async def test_the_verifier_sees_a_clean_place() -> None:
    """What the agent put around its solution, and what it left running, is not there."""
    agent = await open_bwrap(SMALL)
    await agent.exec(
        "mkdir package; echo 'answer = 42' > package/a.py; echo 'print(1)' > package/conftest.py;"
        "echo x > /tmp/elsewhere; ln -s /etc/passwd package/b.py; (sleep 100 > /dev/null &)"
    )

    async def verify(sandbox: Sandbox, artifacts: Artifacts) -> Score:
        found = await sandbox.exec("find /workspace /tmp -type f; pgrep sleep; cat package/a.py")
        return Score(1.0, {"found": found.stdout.decode()})

    score = await graded(
        agent,
        paths=["/workspace/package"],
        accept=lambda path: path.endswith(".py") and "conftest" not in path,
        opens=lambda: open_bwrap(SMALL),
        verify=verify,
    )
    assert score.info["found"] == "/workspace/package/a.py\nanswer = 42\n"
    assert set(score.info["refused_artifacts"]) == {
        "workspace/package/conftest.py",
        "workspace/package/b.py",
    }
    gone = await graded(
        agent,
        paths=["/workspace/nothing"],
        accept=lambda path: True,
        opens=lambda: open_bwrap(SMALL),
        verify=verify,
    )
    assert gone.reward == 0.0
    assert "No such file" in gone.info["artifacts"]
    await agent.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits, the last one the fix; a branch, a tag, a stash, a dangling blob, a reflog."""
    place = tmp_path / "origin"
    place.mkdir()
    script = """set -e
git init -q -b main . && git config user.email a@b && git config user.name a
for i in 1 2 3; do echo "version $i" > file; git add file; git commit -q -m "commit $i"; done
git tag fix && git branch later && git checkout -q HEAD~1
echo secret | git hash-object -w --stdin > /dev/null
git remote add origin https://example.com/fix.git
"""
    subprocess.run(["bash", "-c", script], cwd=place, check=True)
    return place


def test_a_sealed_copy_has_nothing_but_its_commit(repository: Path, tmp_path: Path) -> None:
    assert objects_beyond_head(repository)
    commit = sealed_copy(repository, tmp_path / "sealed")
    assert (tmp_path / "sealed" / "file").read_text() == "version 2\n"
    log = _git(tmp_path / "sealed", "log", "--all", "--format=%H %s").splitlines()
    assert log[0].split()[0] == commit
    assert [line.split(" ", 1)[1] for line in log] == ["commit 2", "commit 1"]
    assert objects_beyond_head(tmp_path / "sealed") == []
    assert _git(tmp_path / "sealed", "reflog") == _git(tmp_path / "sealed", "remote") == ""
    sealed_copy(repository, tmp_path / "shallow", depth=1)
    assert _git(tmp_path / "shallow", "log", "--format=%s") == "commit 2\n"
    with pytest.raises(TaskFault, match="git rev-parse"):
        sealed_copy(repository, tmp_path / "none", commit="nothing")


def test_sealing_in_place(repository: Path) -> None:
    subprocess.run(["bash", "-c", IN_PLACE, "seal", str(repository)], check=True)
    assert objects_beyond_head(repository) == []
    assert _git(repository, "log", "--all", "--format=%s") == "commit 2\ncommit 1\n"
    assert _git(repository, "reflog") == _git(repository, "remote") == ""


def _git(place: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=place, check=True, capture_output=True, text=True
    ).stdout


def test_the_same_files_make_the_same_archive() -> None:
    files = {"/b": b"2", "/a": b"1"}
    assert tar_of(files) == tar_of(dict(reversed(files.items())))
