"""One instance of SWE-bench, from its row: what the agent is told, what grading needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlframe.errors import TaskFault

REQUIRED = (
    "instance_id",
    "repo",
    "base_commit",
    "problem_statement",
    "test_patch",
    "FAIL_TO_PASS",
    "PASS_TO_PASS",
)
COMMIT = re.compile(r"[0-9a-f]{7,64}")
NAME = re.compile(r"[\w.-]+/[\w.-]+")
HEADER = re.compile(r'^diff --git "?a/(?P<old>.+?)"? "?b/(?P<new>.+?)"?$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Instance:
    """`eval_script` and `log_parser` are in rows of SWE-bench 5; empty in older ones."""

    id: str
    repo: str
    base_commit: str
    problem_statement: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    version: str = ""
    eval_script: str = ""
    log_parser: str = ""
    eval_type: str = "pass_and_fail"

    @property
    def test_files(self) -> tuple[str, ...]:
        """That `test_patch` changes, makes or removes."""
        return tuple(dict.fromkeys([*self.old_test_files, *self.new_test_files]))

    @property
    def old_test_files(self) -> tuple[str, ...]:
        """That are there at the base commit."""
        return tuple(path for path, new in touched(self.test_patch) if not new)

    @property
    def new_test_files(self) -> tuple[str, ...]:
        return tuple(path for path, new in touched(self.test_patch) if new)


def instance_of(row: Mapping[str, Any]) -> Instance:
    """TaskFault naming the instance and what of it is missing or wrong."""
    name = f"instance '{row.get('instance_id', '')}'"
    missing = [key for key in REQUIRED if row.get(key) is None or row.get(key) == ""]
    if missing:
        raise TaskFault(f"{name} lacks {', '.join(missing)}")
    if not NAME.fullmatch(str(row["repo"])):
        raise TaskFault(f"{name}: repo={row['repo']!r}: must be owner/name")
    if not COMMIT.fullmatch(str(row["base_commit"])):
        raise TaskFault(f"{name}: base_commit={row['base_commit']!r}: must be a commit's id")
    tests = {key: _names(row[key], f"{name}: {key}") for key in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    if not tests["FAIL_TO_PASS"]:
        raise TaskFault(f"{name}: FAIL_TO_PASS is empty: there is nothing to mend")
    if not touched(str(row["test_patch"])):
        raise TaskFault(f"{name}: test_patch is no diff of git's")
    return Instance(
        id=str(row["instance_id"]),
        repo=str(row["repo"]),
        base_commit=str(row["base_commit"]),
        problem_statement=str(row["problem_statement"]),
        test_patch=str(row["test_patch"]),
        fail_to_pass=tests["FAIL_TO_PASS"],
        pass_to_pass=tests["PASS_TO_PASS"],
        version=str(row.get("version") or ""),
        eval_script=str(row.get("eval_script") or ""),
        log_parser=str(row.get("log_parser") or ""),
        eval_type=str(row.get("eval_type") or "pass_and_fail"),
    )


def touched(patch: str) -> list[tuple[str, bool]]:
    """Paths in a diff of git's, both sides of a renaming, and whether the diff makes them."""
    found: list[tuple[str, bool]] = []
    headers = list(HEADER.finditer(patch))
    for header in headers:
        about = patch[header.end() :].partition("\n@@")[0].partition("\ndiff --git ")[0]
        old, new = _unquoted(header["old"]), _unquoted(header["new"])
        found.append((new, "\nnew file mode" in about or old != new))
        if old != new:
            found.append((old, False))
    return list(dict.fromkeys(found))


def _unquoted(path: str) -> str:
    if "\\" not in path:
        return path
    return path.encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")


def _names(given: Any, where: str) -> tuple[str, ...]:
    try:
        names = json.loads(given) if isinstance(given, str) else list(given)
    except (ValueError, TypeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TaskFault(f"{where} is {given!r:.80}: must be a list of tests' names")
    return tuple(names)
