"""A repository with a bug and the instances of SWE-bench made from it, for tests."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.adapters.swe_bench import SweBenchSource
from envs.registry import make_source

ID = "someone__sums-1"
BROKEN = "def total(numbers):\n    return sum(numbers[1:])\n\ndef count(numbers):\n    return len(numbers)\n"
MENDED = BROKEN.replace("numbers[1:]", "numbers")
OLD_TESTS = "from sums import count, total\n\ndef test_count():\n    assert count([1, 2]) == 2\n"
NEW_TESTS = OLD_TESTS + "\ndef test_total():\n    assert total([1, 2]) == 3\n"
MORE_TESTS = "from sums import total\n\ndef test_none():\n    assert total([]) == 0\n"


def git(directory: Path, *words: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *name, *words], cwd=directory, check=True, capture_output=True, text=True
    )
    return done.stdout


def rows(directory: Path) -> list[dict[str, Any]]:
    """Makes `directory/mirrors/someone__sums`: the bug, then its fix with tests, and the rows."""
    repository = directory / "mirrors" / "someone__sums"
    (repository / "tests").mkdir(parents=True)
    git(repository, "init", "-q")
    (repository / "sums.py").write_text(BROKEN)
    (repository / "tests" / "test_sums.py").write_text(OLD_TESTS)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "a bug")
    base = git(repository, "rev-parse", "HEAD").strip()
    (repository / "sums.py").write_text(MENDED)
    (repository / "tests" / "test_sums.py").write_text(NEW_TESTS)
    (repository / "tests" / "test_more.py").write_text(MORE_TESTS)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "the fix")
    row = {
        "instance_id": ID,
        "repo": "someone/sums",
        "base_commit": base,
        "problem_statement": "`total` forgets the first number.",
        "patch": git(repository, "diff", base, "HEAD", "--", "sums.py"),
        "test_patch": git(repository, "diff", base, "HEAD", "--", "tests"),
        "FAIL_TO_PASS": json.dumps(["tests/test_sums.py::test_total"]),
        "PASS_TO_PASS": ["tests/test_sums.py::test_count", "tests/test_more.py::test_none"],
        "version": "1.0",
    }
    broken = {"instance_id": "someone__sums-2", "repo": "someone/sums", "base_commit": base}
    gone = {**row, "instance_id": "someone__sums-3", "base_commit": "0" * 40}
    elsewhere = {**row, "instance_id": "someone__sums-4", "repo": "else/where"}
    return [row, broken, gone, elsewhere]


def toolbox(directory: Path) -> str:
    """A directory with pytest, as an image would have it."""
    (directory / "tools").mkdir()
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        origin = Path(found.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, directory / "tools" / name)
            for about in origin.parents[1].glob(f"{name}-*.dist-info"):
                shutil.copytree(about, directory / "tools" / about.name)
        else:
            shutil.copy(origin, directory / "tools")
    return str(directory / "tools")


def source(directory: Path, given: list[Mapping[str, Any]], **more: Any) -> SweBenchSource:
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    args = {
        "instances": str(directory / "rows.jsonl"),
        "repositories": str(directory / "mirrors"),
        "cache": str(directory / "cache"),
        "read_only": {toolbox(directory): "/opt/tools"},
        "environment": {"PYTHONPATH": "/opt/tools:/testbed", "PYTHONDONTWRITEBYTECODE": "1"},
        **more,
    }
    made = make_source("swe_bench", args, seed=0, held_out=1)
    assert isinstance(made, SweBenchSource)
    return made
