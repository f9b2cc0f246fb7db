"""A package's own tests, run in a sandbox that holds nothing but the package: which pass, by their ids."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envs.sandbox.artifacts import tar_of
from envs.sandbox.spec import SandboxSpec
from envs.suites.code_repair.packages import Package
from rlframe.sandbox.limits import Quotas
from rlframe.sandbox.protocol import Sandbox

WORKDIR = "/workspace"
TOOLBOX = "/opt/test-tools"
GRADER = "/run/grader"
TIMEOUT_S = 180.0
QUOTAS = Quotas(memory_bytes=1 << 30, disk_bytes=128 << 20, processes=64)

REPORTER = """
import json, os
OUT = os.environ.pop("RLFRAME_REPORT")
seen, messages = {}, {}

def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        if seen.get(report.nodeid, "passed") == "passed":
            seen[report.nodeid] = report.outcome
        crash = getattr(report.longrepr, "reprcrash", None)
        if report.outcome == "failed" and crash is not None:
            messages[report.nodeid] = crash.message[:600]

def pytest_collectreport(report):
    if report.outcome == "failed":
        seen[report.nodeid] = "uncollected"

def pytest_sessionfinish(session, exitstatus):
    with open(OUT, "w") as file:
        for name, outcome in seen.items():
            file.write(json.dumps([name, outcome, messages.get(name, "")]) + "\\n")
"""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Of one run; empty where the tests did not come to their end."""

    outcome: Mapping[str, str]
    """By test id: passed, failed, skipped, uncollected."""
    messages: Mapping[str, str]
    ended: str = ""
    """How the run ended, where there is no report."""

    @property
    def passed(self) -> tuple[str, ...]:
        return tuple(sorted(n for n, outcome in self.outcome.items() if outcome == "passed"))

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(sorted(n for n, o in self.outcome.items() if o in ("failed", "uncollected")))


def digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def grading_spec(toolbox: str) -> SandboxSpec:
    """`toolbox`: a directory with pytest in it, and nothing that a task is about."""
    return SandboxSpec(
        workdir=WORKDIR, directories=(GRADER,), read_only=((toolbox, TOOLBOX),), quotas=QUOTAS
    )


async def run_hidden_tests(
    sandbox: Sandbox,
    package: Package,
    sdist: Mapping[str, bytes],
    tests: Iterable[str],
    timeout_s: float = TIMEOUT_S,
) -> Outcomes:
    """The package lies in the sandbox already; its tests are put there now, over whatever is there."""
    hidden = {
        f"{WORKDIR}/{path}": content for path, content in sdist.items() if package.is_hidden(path)
    }
    hidden[f"{GRADER}/rlframe_report.py"] = REPORTER.encode()
    await sandbox.upload(tar_of(hidden))
    report = f"{GRADER}/{secrets.token_hex(8)}"
    command = ["python3", "-B", "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", WORKDIR]
    command += ["-p", "no:cacheprovider", "-p", "rlframe_report", *tests]
    paths = (TOOLBOX, GRADER, f"{WORKDIR}/{package.source}".removesuffix("/."))
    result = await sandbox.exec(
        command,
        timeout_s=timeout_s,
        env={"PYTHONPATH": ":".join(paths), "RLFRAME_REPORT": report, "PYTHONHASHSEED": "0"},
    )
    try:
        lines = (await sandbox.read(report)).decode(errors="replace").splitlines()
        rows = [json.loads(line) for line in lines]
        outcome = {str(name): str(what) for name, what, _ in rows}
        messages = {str(name): str(said) for name, _, said in rows if said}
    except (OSError, ValueError) as error:
        why = result.limit or f"exit code {result.exit_code}"
        return Outcomes({}, {}, f"no report ({why}): {error}")
    return Outcomes(outcome, messages)
