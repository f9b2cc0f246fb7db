"""An instance's two sandboxes: the agent's, and the one that grades what it left."""

from __future__ import annotations

import asyncio
import os
import shlex
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from envs.adapters.swe_bench_grading import (
    NOT_APPLIED,
    Report,
    Swebench,
    eval_script,
    read_log,
)
from envs.adapters.swe_bench_instance import Instance
from envs.sandbox.artifacts import Artifacts
from envs.sandbox.backends import Opens
from envs.sandbox.git_seal import sealed_copy
from envs.sandbox.grading import graded
from envs.sandbox.spec import SandboxSpec
from rlframe.errors import TaskFault
from rlframe.interfaces import Score
from rlframe.sandbox.protocol import ExecResult, Sandbox

PLACE = "/tmp/rlframe-grading"
DIFF, INDEX = f"{PLACE}/work.diff", f"{PLACE}/index"
TEST_PATCH, SCRIPT = f"{PLACE}/test.patch", f"{PLACE}/eval.sh"
MAX_LOG = 32 << 20
GIT = (
    "git",
    "-c",
    "safe.directory=*",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What all instances of a source share, and this one's sandbox."""

    repositories: str
    spec: SandboxSpec
    opens: Opens
    cache: str
    depth: int
    test_command: str
    test_timeout_s: float
    swebench: Swebench | None
    """None: logs are read by ours."""


async def open_workplace(place: Workplace, instance: Instance) -> Sandbox:
    """The repository at its base commit, without anything later. TaskFault where it can't be had."""
    archive = await asyncio.to_thread(sealed_archive, place, instance)
    sandbox = await place.opens(place.spec)
    try:
        await sandbox.upload(archive.read_bytes(), place.spec.workdir)
    except OSError as error:
        await sandbox.close()
        raise TaskFault(f"instance '{instance.id}': {error}") from error
    return sandbox


def sealed_archive(place: Workplace, instance: Instance) -> Path:
    """Made once."""
    name = instance.repo.replace("/", "__")
    found = Path(place.cache) / f"{name}-{instance.base_commit}-{place.depth}.tar"
    if found.exists():
        return found
    names = (name, f"{name}.git", instance.repo, f"{instance.repo}.git")
    mirrors = [Path(place.repositories) / each for each in names]
    mirror = next((path for path in mirrors if path.is_dir()), None)
    if mirror is None:
        raise TaskFault(f"instance '{instance.id}': there is no '{mirrors[0]}'")
    found.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=found.parent) as temporary:
        copy, packed = Path(temporary) / "copy", Path(temporary) / "copy.tar"
        sealed_copy(mirror, copy, commit=instance.base_commit, depth=place.depth)
        with tarfile.open(packed, "w") as archive:
            archive.add(copy, ".")
        os.replace(packed, found)
    return found


async def grade_instance(place: Workplace, instance: Instance, agent: Sandbox) -> Score:
    """See `swe_bench`. What the agent did to git in its sandbox can only change its own diff."""
    await agent.end_processes()
    made = await agent.exec(_diff_command(place.spec.workdir, instance.base_commit), timeout_s=300)
    if made.exit_code != 0:
        return Score(0.0, {"diff": _tail(made) or "took too long"})

    async def verify(sandbox: Sandbox, artifacts: Artifacts) -> Score:
        if not artifacts.files.get(DIFF, b"").strip():
            return Score(0.0, {"diff": "empty"})
        return await _verify(place, instance, sandbox)

    return await graded(
        agent,
        paths=[DIFF],
        accept=lambda path: path == DIFF,
        opens=lambda: open_workplace(place, instance),
        verify=verify,
    )


def _diff_command(workdir: str, commit: str) -> str:
    """Against the base commit, whatever was committed since, by an index of its own."""
    git = " ".join((*GIT, "-C", shlex.quote(workdir)))
    plain = "--binary --no-color --no-ext-diff --no-textconv --no-renames"
    return (
        f"rm -rf {PLACE} && mkdir {PLACE} && export GIT_INDEX_FILE={INDEX} && "
        f"{git} read-tree {commit} && {git} add -A && "
        f"{git} diff --cached {plain} {commit} > {DIFF}"
    )


async def _verify(place: Workplace, instance: Instance, sandbox: Sandbox) -> Score:
    applied = await _apply(sandbox, place.spec.workdir, instance)
    if applied.exit_code != 0:
        return Score(0.0, {"diff": f"does not apply: {_tail(applied)}"})
    script = eval_script(
        instance, workdir=place.spec.workdir, test_patch=TEST_PATCH, command=place.test_command
    )
    await sandbox.write(TEST_PATCH, instance.test_patch.encode())
    await sandbox.write(SCRIPT, script.encode())
    ran = await sandbox.exec(
        f"bash {SCRIPT} 2>&1", timeout_s=place.test_timeout_s, max_output_bytes=MAX_LOG
    )
    if ran.timed_out:
        return Score(0.0, {"tests": "timed out", "seconds": ran.seconds})
    log = ran.stdout.decode(errors="replace")
    if NOT_APPLIED in log:
        raise TaskFault(f"instance '{instance.id}': test_patch does not apply: {log[-300:]}")
    if place.swebench is not None:
        report = await place.swebench.read_log(log, instance)
    else:
        report = read_log(log, instance)
    return Score(float(report.resolved), {**_told(report), "log_tail": log[-2000:]})


async def _apply(sandbox: Sandbox, workdir: str, instance: Instance) -> ExecResult:
    """The agent's diff, but for the test patch's files."""
    special = str.maketrans({c: f"\\{c}" for c in "\\*?["})
    kept = [f"--exclude={path.translate(special)}" for path in instance.test_files]
    words = [*GIT, "apply", "--whitespace=nowarn", *kept, DIFF]
    return await sandbox.exec(words, cwd=workdir)


def _told(report: Report) -> Mapping[str, object]:
    return {
        "resolved": report.resolved,
        "log_read": report.read,
        "fail_to_pass": list(report.fail_to_pass),
        "pass_to_pass": list(report.pass_to_pass),
    }


def _tail(result: ExecResult) -> str:
    return result.stderr[-300:].decode(errors="replace").strip()
