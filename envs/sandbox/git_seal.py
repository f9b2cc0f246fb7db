"""A repository as it was at one commit: no later objects, no reflog, no remote, nothing unreachable.

A fresh repository fetches that commit alone (and `depth - 1` before it), so that nothing else is ever in it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from rlframe.errors import TaskFault

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
}
BRANCH = "main"

IN_PLACE = """set -e
cd "$1"
head=$(git rev-parse HEAD)
git checkout -q --detach "$head"
git remote | while read -r name; do git remote remove "$name"; done
git for-each-ref --format='%(refname)' | while read -r name; do git update-ref -d "$name"; done
git stash clear || true
git checkout -q -B main "$head"
rm -rf .git/logs .git/FETCH_HEAD .git/ORIG_HEAD .git/refs/original
git reflog expire --expire=all --all
git repack -q -a -d
git prune --expire=now
rm -rf .git/logs
"""
"""For a repository that lies in an image already: `bash -c IN_PLACE seal DIRECTORY` inside the sandbox."""


def sealed_copy(
    repository: Path, destination: Path, *, commit: str = "HEAD", depth: int = 0
) -> str:
    """`destination` becomes a repository at `commit`; `depth` 0: with all of its history before.

    Returns the commit's id. Raises TaskFault where git can't.
    """
    found = _git(repository, "rev-parse", "--verify", f"{commit}^{{commit}}").strip()
    destination.mkdir(parents=True)
    _git(destination, "init", "-q", "-b", BRANCH)
    shallow = [f"--depth={depth}"] if depth else []
    _git(
        destination,
        "fetch",
        "-q",
        "--no-tags",
        *shallow,
        "--upload-pack=git -c uploadpack.allowAnySHA1InWant=true upload-pack",
        f"file://{repository.resolve()}",
        found,
    )
    _git(destination, "checkout", "-q", "-B", BRANCH, found)
    for leftover in ("FETCH_HEAD", "ORIG_HEAD"):
        (destination / ".git" / leftover).unlink(missing_ok=True)
    shutil.rmtree(destination / ".git" / "logs", ignore_errors=True)
    return found


def objects_beyond_head(repository: Path) -> list[str]:
    """Ids of objects that HEAD's history does not need: empty in a sealed repository."""
    held = _git(
        repository, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"
    ).split()
    needed = {
        line.split()[0] for line in _git(repository, "rev-list", "--objects", "HEAD").splitlines()
    }
    return sorted(set(held) - needed)


def _git(directory: Path, *words: str) -> str:
    command = ["git", "-c", "safe.directory=*", *words]
    try:
        done = subprocess.run(
            command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TaskFault(f"git {words[0]} in {directory}: {error}") from error
    if done.returncode != 0:
        raise TaskFault(f"git {words[0]} in {directory}: {done.stderr.strip()[:300]}")
    return done.stdout
