"""Docker and remote sandboxes against stand-ins (there is no daemon and no service here): what is asked for,
and how answers and failures are read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import e2b_stand_in
import pytest

from envs.sandbox.docker import open_docker
from envs.sandbox.remote import open_remote
from envs.sandbox.spec import SandboxSpec
from rlframe.errors import InfraFault, PolicyFault, UserError
from rlframe.sandbox.limits import Quotas
from rlframe.sandbox.protocol import Sandbox

STAND_IN = Path(__file__).parents[1] / "docker_stand_in.py"


@pytest.fixture
def spec(tmp_path: Path) -> SandboxSpec:
    """Commands run here: the work directory is a real one."""
    (tmp_path / "work").mkdir()
    return SandboxSpec(
        image="python:3.11", workdir=str(tmp_path / "work"), quotas=Quotas(processes=7, cpus=0.5)
    )


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("RLFRAME_DOCKER", str(STAND_IN))
    monkeypatch.setenv("DOCKER_STAND_IN_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[e2b_stand_in.StandIn]:
    stand_in, runner = await e2b_stand_in.serve()
    monkeypatch.setenv("RLFRAME_SANDBOX_API", stand_in.url)
    monkeypatch.setenv("RLFRAME_SANDBOX_KEY", e2b_stand_in.KEY)
    yield stand_in
    await runner.cleanup()


async def the_protocol_holds(sandbox: Sandbox, work: str) -> None:
    result = await sandbox.exec("cat; echo $A; echo err >&2; exit 3", stdin=b"in", env={"A": "b"})
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"inb\n", b"err\n")
    assert (await sandbox.exec(["printf", "%s|", "a b", "$HOME"])).stdout == b"a b|$HOME|"
    content = bytes(range(256)) * 500
    await sandbox.write(f"{work}/new/a b", content, mode=0o750)
    assert await sandbox.read(f"{work}/new/a b") == content
    assert await sandbox.read(f"{work}/new/a b", max_bytes=3) == content[:3]
    with pytest.raises(FileNotFoundError):
        await sandbox.read(f"{work}/nothing")
    with pytest.raises(IsADirectoryError):
        await sandbox.read(f"{work}/new")
    archive = await sandbox.snapshot([f"{work}/new"])
    await sandbox.upload(archive, f"{work}/copy")
    assert await sandbox.read(f"{work}/copy/{work}/new/a b") == content
    with pytest.raises(OSError, match="is larger than allowed"):
        await sandbox.snapshot([f"{work}/new"], max_bytes=100)
    slow = await sandbox.exec("sleep 100", timeout_s=0.2)
    assert (slow.limit, slow.exit_code) == ("time", 137)
    long = await sandbox.exec("seq 10000", max_output_bytes=100)
    assert (len(long.stdout), long.dropped_stdout) == (100, 48894 - 100)


async def test_docker(state: Path, spec: SandboxSpec) -> None:
    sandbox = await open_docker(replace(spec, read_only=(("/a", "/b"),)))
    asked = (state / "log").read_text().splitlines()[0].split("\t")
    assert {
        "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=1000:1000",
        "--pids-limit=7", "--cpus=0.5", f"--memory={2 << 30}", f"--memory-swap={2 << 30}",
        "--volume=/a:/b:ro", "--rm",
    } <= set(asked)  # fmt: skip
    assert asked[-3:] == ["python:3.11", "sleep", "infinity"]
    await the_protocol_holds(sandbox, spec.workdir)
    await sandbox.close()
    assert not (state / "container").exists()
    with pytest.raises(InfraFault, match="closed"):
        await sandbox.exec("true")
    public = await open_docker(replace(spec, network=("*",)))
    assert "--network=bridge" in (state / "log").read_text().splitlines()[-1].split("\t")
    await public.close()


async def test_docker_by_whose_fault(
    state: Path, spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InfraFault, match=r"image 'absent' failed: .*pull access denied"):
        await open_docker(replace(spec, image="absent"))
    with pytest.raises(UserError, match="needs an image"):
        await open_docker(replace(spec, image=""))
    with pytest.raises(UserError, match="not a list"):
        await open_docker(replace(spec, network=("pypi.org",)))
    never_used, used = await open_docker(spec), await open_docker(spec)
    await used.exec("true")
    (state / "container").unlink()
    with pytest.raises(InfraFault, match="No such container"):
        await never_used.exec("true")
    with pytest.raises(PolicyFault, match="ended from within"):
        await used.exec("true")
    monkeypatch.setenv("RLFRAME_DOCKER", "/nowhere/docker")
    with pytest.raises(InfraFault, match="is not installed"):
        await open_docker(spec)


async def test_remote(service: e2b_stand_in.StandIn, spec: SandboxSpec) -> None:
    sandbox = await open_remote(spec)
    assert service.asked[0]["templateID"] == "python:3.11"
    assert service.asked[0]["allow_internet_access"] is False
    await the_protocol_holds(sandbox, spec.workdir)
    service.break_stream = True
    with pytest.raises(InfraFault, match="stream ended before the command did"):
        await sandbox.exec("true")
    await sandbox.close()
    await sandbox.close()
    assert not service.sandboxes


async def test_remote_by_whose_fault(
    service: e2b_stand_in.StandIn, spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InfraFault, match=r"404: .*template 'absent' not found"):
        await open_remote(replace(spec, image="absent"))
    sandbox = await open_remote(spec)
    service.sandboxes.clear()
    with pytest.raises(InfraFault, match=r"502: .*not found"):
        await sandbox.exec("true")
    await sandbox.close()
    with pytest.raises(UserError, match="upload them"):
        await open_remote(replace(spec, read_only=(("/a", "/b"),)))
    monkeypatch.setenv("RLFRAME_SANDBOX_KEY", "wrong")
    with pytest.raises(InfraFault, match=r"401: .*Invalid API key"):
        await open_remote(spec)
    monkeypatch.setenv("RLFRAME_SANDBOX_API", "http://127.0.0.1:9")
    with pytest.raises(InfraFault, match="the sandbox service at"):
        await open_remote(spec)
    monkeypatch.delenv("RLFRAME_SANDBOX_KEY")
    with pytest.raises(UserError, match="RLFRAME_SANDBOX_API and RLFRAME_SANDBOX_KEY"):
        await open_remote(spec)
