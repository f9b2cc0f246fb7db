"""From a run of an instance's tests to resolved or not: the script that runs them, and how its log is read.

The log is read by the `swebench` package (its parsers, its `get_eval_report`), in a process of its own, where it is
installed; by `read_log` otherwise, which knows pytest's summary lines and agrees with it there (by test).
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from envs.adapters.peer import INSIDE
from envs.adapters.peer_program import PeerProgram
from envs.adapters.swe_bench_instance import Instance
from rlframe.errors import InfraFault, TaskFault

START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
EXIT_CODE = ">>>>> Test Exit Code"
NOT_APPLIED = ">>>>> Patch Apply Failed"
OWN_PARSERS = ("parse_log_pytest",)
STATUSES = ("FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL")
PASSED = ("PASSED", "XFAIL")
KEPT = ("PASSED", "XFAIL", "SKIPPED")
GRADER_S = 120.0


@dataclass(frozen=True, slots=True)
class Report:
    """`read`: the log told how the tests went. Tests by how they ended."""

    read: bool
    resolved: bool
    fail_to_pass: tuple[int, int] = (0, 0)
    """That pass now, of how many."""
    pass_to_pass: tuple[int, int] = (0, 0)


def eval_script(instance: Instance, *, workdir: str, test_patch: str, command: str) -> str:
    """The row's own, or one of ours: test files as they were, the test patch from a file, the tests."""
    if instance.eval_script:
        return _with_exit_code(instance.eval_script)
    old = " ".join(shlex.quote(path) for path in instance.old_test_files)
    files = " ".join(shlex.quote(path) for path in instance.test_files)
    lines = [
        "#!/bin/bash",
        "set -uo pipefail",
        f"cd {shlex.quote(workdir)}",
        f"git checkout -q {instance.base_commit} -- {old}" if old else ":",
        f"git apply --whitespace=nowarn {test_patch} || {{ echo '{NOT_APPLIED}'; exit 1; }}",
        f"echo '{START}'",
        f"{command} {files}",
        f"echo '{END}'",
    ]
    return _with_exit_code("\n".join(lines) + "\n")


def _with_exit_code(script: str) -> str:
    """The tests' own exit code, told after the end of their output: a log that shows no failure and an exit
    code that does is not to be believed."""
    lines = script.split("\n")
    at = next((number for number, line in enumerate(lines) if END in line), None)
    if at is None:
        return script
    told = ["RLFRAME_TESTS=$?", lines[at], f'echo "{EXIT_CODE}: $RLFRAME_TESTS"']
    return "\n".join([*lines[:at], *told, *lines[at + 1 :]])


def read_log(log: str, instance: Instance) -> Report:
    """Of pytest's short summary (`-rA`)."""
    unread = Report(False, False)
    if NOT_APPLIED in log or START not in log or END not in log:
        return unread
    inner = log.split(START)[1].split(END)[0]
    status = _statuses(inner) or _statuses(log)
    code = re.search(rf"{EXIT_CODE}: *(-?\d+)", log)
    failures = [name for name, what in status.items() if what in ("FAILED", "ERROR")]
    if not status or (code is not None and code[1] != "0" and not failures):
        return unread
    mended = sum(status.get(name) in PASSED for name in instance.fail_to_pass)
    kept = sum(status.get(name) in KEPT for name in instance.pass_to_pass)
    of = (len(instance.fail_to_pass), len(instance.pass_to_pass))
    return Report(True, (mended, kept) == of, (mended, of[0]), (kept, of[1]))


def _statuses(log: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in log.split("\n"):
        words = line.replace(" - ", " ").split() if line.startswith("FAILED") else line.split()
        if len(words) < 2 or not line.startswith(STATUSES):
            continue
        counted = words[1].strip("[]").isdigit() and words[1] != words[1].strip("[]")
        if not (words[0] == "SKIPPED" and counted):
            found[words[1]] = words[0]
    return found


class Swebench:
    """The package, in a process of its own."""

    def __init__(self, python: str) -> None:
        command = [python, str(INSIDE / "swebench_side.py")]
        self.program = PeerProgram(command, what="the process of swebench")

    async def read_log(self, log: str, instance: Instance) -> Report:
        """TaskFault where the package can't read it (an unknown parser, a parser that raises)."""
        given = {"instance": asdict(instance), "log": log}
        asked = self.program.ask("report", given, timeout_s=GRADER_S)
        try:
            answer = await asyncio.wrap_future(asked)
        except TimeoutError:
            raise InfraFault(f"swebench did not grade {instance.id} in {GRADER_S:g} s") from None
        if "error" in answer:
            raise TaskFault(f"instance '{instance.id}': swebench: {answer['error']}")
        return _report(answer["result"])


def _report(given: Mapping[str, Any]) -> Report:
    tests = given.get("tests_status") or {}

    def counted(key: str) -> tuple[int, int]:
        found = tests.get(key, {"success": [], "failure": []})
        return len(found["success"]), len(found["success"]) + len(found["failure"])

    read, resolved = given["patch_successfully_applied"], given["resolved"]
    return Report(read, resolved, counted("FAIL_TO_PASS"), counted("PASS_TO_PASS"))
