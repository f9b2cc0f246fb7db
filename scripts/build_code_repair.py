"""Build the code_repair suite: sdists from PyPI (pinned, with their hashes), pytest for the sandbox.

    python scripts/build_code_repair.py [--directory runs/code_repair]
    python scripts/build_code_repair.py --choose [PACKAGE...]    # the mutations again: writes the manifest

Choosing tries mutations of every package in an order drawn from its name and version, in sandboxes, and
keeps those that make a few of its tests fail, the same ones twice. The same packages give the same manifest.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from envs.sandbox.artifacts import tar_of  # noqa: E402
from envs.sandbox.bwrap import open_bwrap  # noqa: E402
from envs.suites.code_repair.hidden_tests import (  # noqa: E402
    WORKDIR,
    Outcomes,
    digest,
    grading_spec,
    run_hidden_tests,
)
from envs.suites.code_repair.mutations import Mutation, mutations  # noqa: E402
from envs.suites.code_repair.packages import PACKAGES, Package, sdist_files  # noqa: E402
from envs.suites.code_repair.tasks import MANIFEST, RepairTask  # noqa: E402

TOOLS = (
    "pytest==8.4.2",
    "pluggy==1.6.0",
    "iniconfig==2.1.0",
    "packaging==25.0",
    "pygments==2.19.2",
)
TASKS_A_PACKAGE = 4
MAX_FAILING_SHARE = 0.2
MAX_TRIES = 40
TRY_S = 45.0
"""A mutation after which the tests take longer is none for us."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("runs/code_repair"))
    parser.add_argument("--choose", nargs="*", help="choose again, for these packages or all")
    given = parser.parse_args()
    download(given.directory)
    if given.choose is not None:
        for name in given.choose or PACKAGES:
            rows = asyncio.run(choose_from(PACKAGES[name], given.directory))
            write(name, rows)
            print(f"{name}: {len(rows)} tasks", flush=True)


def download(directory: Path) -> None:
    """What is there with the right hash stays."""
    directory.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    for package in PACKAGES.values():
        path = directory / package.sdist
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
            continue
        wanted = directory / f"{package.name}.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        words = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
        subprocess.run(
            [*pip, "download", *words, "-d", str(directory), "-r", str(wanted)], check=True
        )
        wanted.unlink()
        sdist_files(str(directory), package.name)
        print(f"{package.name} {package.version} ({package.licence})")
    tools = directory / "tools"
    if not (tools / "pytest").is_dir():
        subprocess.run([*pip, "install", "--no-deps", "--target", str(tools), *TOOLS], check=True)


def write(name: str, rows: list[RepairTask]) -> None:
    """Into the manifest, in place of the package's old ones. Two runs may do it at the same time."""
    with MANIFEST.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
        kept = [row for row in old if row["package"] != name] + [task.to_json() for task in rows]
        kept.sort(key=lambda row: row["id"])
        MANIFEST.write_text(json.dumps(kept, indent=1) + "\n")
    MANIFEST.with_suffix(".lock").unlink(missing_ok=True)


async def choose_from(package: Package, directory: Path) -> list[RepairTask]:
    """At most one mutation of a function."""
    sdist = sdist_files(str(directory), package.name)
    files = {f: c for f, c in sdist.items() if not package.is_hidden(f)}
    candidates = [
        (file, mutation) for file in package.modules for mutation in mutations(sdist[file].decode())
    ]
    random.Random(f"{package.name}/{package.version}").shuffle(candidates)
    whole: dict[tuple[str, ...], Outcomes] = {}
    kept: dict[str, RepairTask] = {}
    for file, mutation in candidates[:MAX_TRIES]:
        place = f"{file}:{mutation.function}"
        if len(kept) == TASKS_A_PACKAGE or place in kept:
            continue
        tests = package.modules[file]
        if tests not in whole:
            whole[tests] = await outcomes(package, sdist, files, tests, directory)
            twice = await outcomes(package, sdist, files, tests, directory)
            assert twice == whole[tests], f"the tests of {package.name} are not deterministic"
        changed = mutation.applied(sdist[file].decode()).encode()
        broken = {**files, file: changed}
        first = await outcomes(package, sdist, broken, tests, directory)
        if not good(first, whole[tests]):
            continue
        again = await outcomes(package, sdist, broken, tests, directory)
        if again.outcome == first.outcome:
            number = len(kept) + 1
            kept[place] = task_of(package, number, file, mutation, changed, first, whole[tests])
    return list(kept.values())


def good(broken: Outcomes, whole: Outcomes) -> bool:
    """A few tests fail, every one is still found, none of them hangs."""
    lost = set(whole.passed) - set(broken.passed)
    same = set(broken.outcome) == set(whole.outcome)
    return bool(same and lost and len(lost) <= max(3, MAX_FAILING_SHARE * len(whole.passed)))


def task_of(
    package: Package,
    number: int,
    file: str,
    mutation: Mutation,
    changed: bytes,
    broken: Outcomes,
    whole: Outcomes,
) -> RepairTask:
    failing = tuple(sorted(set(whole.passed) - set(broken.passed)))
    return RepairTask(
        id=f"{package.name}-{number}",
        package=package.name,
        file=file,
        mutation=mutation,
        mutated_sha256=hashlib.sha256(changed).hexdigest(),
        tests=package.modules[file],
        failing=failing,
        passing=len(whole.passed),
        passing_digest=digest(whole.passed),
        report=broken.messages.get(failing[0], ""),
    )


async def outcomes(
    package: Package,
    sdist: Mapping[str, bytes],
    files: Mapping[str, bytes],
    tests: tuple[str, ...],
    directory: Path,
) -> Outcomes:
    sandbox = await open_bwrap(grading_spec(str(directory / "tools")))
    try:
        await sandbox.upload(tar_of({f"{WORKDIR}/{path}": c for path, c in files.items()}))
        return await run_hidden_tests(sandbox, package, sdist, tests, TRY_S)
    finally:
        await sandbox.close()


if __name__ == "__main__":
    main()
