"""A container of Docker's (or Podman's: `RLFRAME_DOCKER=podman`), by its command line.

Not run against a daemon in this repository's tests, which use a scripted stand-in for the `docker` command:
they hold what is asked for, and how its answers and failures are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.sandbox.command_sandbox import LATE_S, CommandSandbox
from envs.sandbox.spec import Ports, SandboxSpec
from rlframe.errors import InfraFault, PolicyFault, UserError
from rlframe.task_rules import EVERY_HOST

DAEMON_FAILED = 125
"""`docker run`'s and `docker exec`'s own failure, as against the command's."""
START_S = 300.0


def docker_command() -> str:
    return os.environ.get("RLFRAME_DOCKER", "docker")


@dataclass(slots=True)
class DockerSandbox(CommandSandbox):
    """Satisfies `rlframe.sandbox.protocol.Sandbox`."""

    container: str
    _used: bool = False

    async def _run(
        self,
        words: Sequence[str],
        *,
        stdin: bytes,
        cwd: str,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> tuple[int, bytes, bytes]:
        variables = [f"--env={key}={value}" for key, value in env.items()]
        code, stdout, stderr = await _docker(
            "exec", "-i", f"--workdir={cwd}", *variables, self.container, *words,
            stdin=stdin, timeout_s=timeout_s,
        )  # fmt: skip
        if code == DAEMON_FAILED or _is_gone(stderr):
            raise self._lost(stderr)
        self._used = True
        return code, stdout, stderr

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            with contextlib.suppress(InfraFault):
                await _docker("rm", "--force", "--volumes", self.container, timeout_s=LATE_S)

    def _lost(self, stderr: bytes) -> Exception:
        """A container that ran and is not there any more was ended from within (or out of memory)."""
        said = stderr.decode(errors="replace").strip()[-300:]
        if self._used and _is_gone(stderr):
            return PolicyFault(f"the sandbox was ended from within: {said}")
        return InfraFault(f"docker: {said}")


def run_arguments(spec: SandboxSpec) -> list[str]:
    """Of `docker run`: no network, no capability, not root, a writable layer and /tmp, limits."""
    quotas = spec.quotas
    network = "bridge" if EVERY_HOST in spec.network else "none"
    shown = [f"--volume={outside}:{inside}:ro" for outside, inside in spec.read_only]
    if spec.model_socket:
        shown.append(f"--volume={spec.model_socket}:/run/model/sock")
    return [
        "run", "--detach", "--rm", "--init",
        f"--network={network}", "--cap-drop=ALL", "--security-opt=no-new-privileges",
        "--user=1000:1000", f"--memory={quotas.memory_bytes}", f"--memory-swap={quotas.memory_bytes}",
        f"--pids-limit={quotas.processes}", f"--cpus={quotas.cpus:g}",
        *(f"--tmpfs={directory}:rw,exec,mode=1777,size={quotas.disk_bytes}"
          for directory in dict.fromkeys((spec.workdir, spec.home, "/tmp", *spec.directories))),
        *shown, f"--workdir={spec.workdir}", spec.image, "sleep", "infinity",
    ]  # fmt: skip


async def open_docker(spec: SandboxSpec) -> DockerSandbox:
    """UserError without an image or for what can't be had; InfraFault where docker fails, an absent
    image too."""
    Ports("docker").check(spec.network)
    if not spec.image:
        raise UserError("the docker sandbox needs an image")
    code, stdout, stderr = await _docker(*run_arguments(spec), timeout_s=START_S)
    if code != 0:
        said = stderr.decode(errors="replace").strip()[-300:]
        raise InfraFault(f"docker run of image '{spec.image}' failed: {said}")
    return DockerSandbox(spec, stdout.decode().strip().splitlines()[-1])


async def _docker(*words: str, stdin: bytes = b"", timeout_s: float) -> tuple[int, bytes, bytes]:
    try:
        process = await asyncio.create_subprocess_exec(
            docker_command(),
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise InfraFault(f"{docker_command()} is not installed: {error}") from error
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(stdin), timeout_s)
    except TimeoutError:
        raise InfraFault(f"docker {words[0]} did not come back in {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, stdout, stderr


def _is_gone(stderr: bytes) -> bool:
    return b"No such container" in stderr or b"is not running" in stderr
