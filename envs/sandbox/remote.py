"""A sandbox elsewhere, by E2B's HTTP API (and services that speak it).

`RLFRAME_SANDBOX_API` is the control plane (`https://api.e2b.app`), `RLFRAME_SANDBOX_KEY` its key. Commands go
to the sandbox's own daemon, `https://49983-ID.DOMAIN`, as Connect streams of JSON. Tested against a stand-in
of the API in this repository, not against the service.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from envs.sandbox.command_sandbox import KILLED, CommandSandbox
from envs.sandbox.spec import Ports, SandboxSpec
from rlframe.errors import InfraFault, UserError
from rlframe.task_rules import EVERY_HOST

ENVD_PORT = 49983
LIFE_S = 3600
END_OF_STREAM = 2
USER = "user"


@dataclass(slots=True)
class RemoteSandbox(CommandSandbox):
    """Satisfies `rlframe.sandbox.protocol.Sandbox`."""

    id: str
    control: str
    daemon: str
    session: aiohttp.ClientSession
    token: str = ""
    _number: int = 0

    async def _run(
        self,
        words: Sequence[str],
        *,
        stdin: bytes,
        cwd: str,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> tuple[int, bytes, bytes]:
        if stdin:
            self._number += 1
            place = f"/tmp/.rlframe-stdin-{self._number}"
            await self._put(place, stdin)
            words = ["/bin/bash", "-c", 'exec < "$0"; rm -f "$0"; exec "$@"', place, *words]
        process = {"cmd": words[0], "args": list(words[1:]), "envs": dict(env), "cwd": cwd}
        try:
            async with asyncio.timeout(timeout_s):
                return await self._process({"process": process, "stdin": False})
        except TimeoutError:
            raise InfraFault("the remote sandbox does not answer any more") from None
        except aiohttp.ClientError as error:
            raise InfraFault(f"the remote sandbox: {error}") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.session.delete(f"{self.control}/sandboxes/{self.id}"):
                pass
        await self.session.close()

    async def _put(self, path: str, content: bytes) -> None:
        form = aiohttp.FormData()
        form.add_field("file", content, filename=path)
        url, where = f"{self.daemon}/files", {"path": path, "username": USER}
        try:
            async with self.session.post(
                url, params=where, data=form, headers=self._own()
            ) as answer:
                if answer.status >= 300:
                    raise self._refused(answer.status, await answer.text())
        except aiohttp.ClientError as error:
            raise InfraFault(f"the remote sandbox: {error}") from error

    async def _process(self, request: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
        out, err, code = bytearray(), bytearray(), -1
        headers = {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
        body = json.dumps(request).encode()
        async with self.session.post(
            f"{self.daemon}/process.Process/Start",
            data=struct.pack(">BI", 0, len(body)) + body,
            headers={**headers, **self._own()},
        ) as answer:
            if answer.status != 200:
                raise self._refused(answer.status, await answer.text())
            async for event in _events(answer.content):
                data = event.get("data", {})
                out += base64.b64decode(data.get("stdout", ""))
                err += base64.b64decode(data.get("stderr", ""))
                if "end" in event:
                    code = _exit_code(event["end"])
        if code < 0:
            raise InfraFault("the remote sandbox's stream ended before the command did")
        return code, bytes(out), bytes(err)

    def _own(self) -> dict[str, str]:
        basic = base64.b64encode(f"{USER}:".encode()).decode()
        headers = {"Authorization": f"Basic {basic}"}
        return headers | ({"X-Access-Token": self.token} if self.token else {})

    def _refused(self, status: int, text: str) -> Exception:
        return InfraFault(f"the remote sandbox answers {status}: {text[:200]}")


def _exit_code(end: Mapping[str, Any]) -> int:
    if "exitCode" in end:
        return int(end["exitCode"])
    status = str(end.get("status", ""))
    return KILLED if "killed" in status else 0


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[Mapping[str, Any]]:
    """The messages of a Connect stream. Raises InfraFault for its error, and for what is none."""
    while True:
        try:
            flags, size = struct.unpack(">BI", await stream.readexactly(5))
            message = json.loads(await stream.readexactly(size))
        except asyncio.IncompleteReadError:
            return
        except ValueError as error:
            raise InfraFault(f"the remote sandbox's stream is garbled: {error}") from error
        if flags & END_OF_STREAM:
            if "error" in message:
                said = message["error"].get("message", message["error"])
                raise InfraFault(f"the remote sandbox: {said}")
            return
        event = message.get("event", {})
        if isinstance(event, Mapping):
            yield event


async def open_remote(spec: SandboxSpec) -> RemoteSandbox:
    """`spec.image` is the template. UserError without address or key; InfraFault where it fails."""
    Ports("remote").check(spec.network)
    control = os.environ.get("RLFRAME_SANDBOX_API", "").rstrip("/")
    key = os.environ.get("RLFRAME_SANDBOX_KEY", "")
    if not control or not key:
        raise UserError("the remote sandbox needs RLFRAME_SANDBOX_API and RLFRAME_SANDBOX_KEY")
    if spec.read_only or spec.model_socket:
        raise UserError("the remote sandbox sees no files or sockets of this machine: upload them")
    session = aiohttp.ClientSession(headers={"X-API-Key": key})
    asked = {
        "templateID": spec.image or "base",
        "timeout": LIFE_S,
        "allow_internet_access": EVERY_HOST in spec.network,
    }
    try:
        async with session.post(f"{control}/sandboxes", json=asked) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise InfraFault(f"the sandbox service answers {answer.status}: {text[:200]}")
        about = json.loads(text)
        daemon = about.get("daemonURL") or (
            f"https://{ENVD_PORT}-{about['sandboxID']}.{about.get('domain') or 'e2b.app'}"
        )
        token = about.get("envdAccessToken") or ""
        sandbox = RemoteSandbox(spec, about["sandboxID"], control, daemon, session, token)
        await sandbox.exec(["mkdir", "-p", spec.workdir, spec.home], cwd="/")
    except (aiohttp.ClientError, ValueError, KeyError) as error:
        await session.close()
        raise InfraFault(f"the sandbox service at {control}: {error!r}") from error
    except InfraFault:
        await session.close()
        raise
    return sandbox
