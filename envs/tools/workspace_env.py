"""The same task for an agent program: a `WorkspaceEnv` made of a `SandboxToolEnv`.

What lies in the work directory of the tools' sandbox when an attempt begins is carried to the program's; what
the program leaves there is carried into a fresh one of them, and graded by the same grader.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envs.sandbox.artifacts import tar_of
from envs.sandbox.grading import MAX_ARTIFACT_BYTES
from envs.tools.tool_env import SandboxToolEnv, finite_reward
from rlframe.errors import PolicyFault
from rlframe.interfaces import Score
from rlframe.sandbox.protocol import Sandbox

FORMS = ("tools", "workspace")
"""`env.args.form` of a suite that has both."""
EMPTY = "find . -mindepth 1 -delete"


@dataclass(frozen=True, slots=True)
class SandboxWorkspaceEnv:
    """Satisfies `rlframe.interfaces.WorkspaceEnv`. The tools' work directory has to be the one that programs
    see (/workspace); what the task has elsewhere in its sandbox, they don't."""

    env: SandboxToolEnv
    text: str
    """What the program is told."""

    async def prepare(self, directory: Path) -> str:
        workdir = self.env.settings.workdir
        sandbox = await self.env.opens()
        try:
            archive = await sandbox.snapshot([workdir], max_bytes=MAX_ARTIFACT_BYTES)
        finally:
            await sandbox.close()
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            for member in opened.getmembers():
                inner = os.path.relpath(f"/{member.name.lstrip('/')}", workdir)
                if inner != ".":
                    opened.extract(member.replace(name=inner), directory, filter="data")
        return self.text

    async def score(self, directory: Path) -> Score:
        """What is too large earns nothing, and so does what destroys the sandbox that it is graded in."""
        files = dict(plain_files(directory))
        if sum(map(len, files.values())) > MAX_ARTIFACT_BYTES:
            return Score(0.0, {"artifacts": f"more than {MAX_ARTIFACT_BYTES} bytes were left"})
        workdir = self.env.settings.workdir
        sandbox = await self.env.opens()
        try:
            await _carried(sandbox, {f"{workdir}/{path}": c for path, c in files.items()}, workdir)
            score = await self.env.grade(sandbox, "")
        except PolicyFault as error:
            return Score(0.0, {"fault": "policy", "error": str(error)})
        finally:
            await sandbox.close()
        finite_reward(score)
        return score

    async def close(self) -> None:
        """Nothing is held between `prepare` and `score`."""


async def _carried(sandbox: Sandbox, files: dict[str, bytes], workdir: str) -> None:
    await sandbox.exec(EMPTY, cwd=workdir)
    await sandbox.upload(tar_of(files))


def plain_files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """(path below the directory, content). A program has written there: no link is followed, and no more is
    read than may count."""
    left = MAX_ARTIFACT_BYTES + 1
    for root, _, names in os.walk(directory, followlinks=False):
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                content = file.read(left)
            left -= len(content)
            yield str(path.relative_to(directory)), content
