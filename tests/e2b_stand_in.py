"""A stand-in for E2B's API: the control plane, and a sandbox's daemon whose commands run here, unprotected."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from pathlib import Path
from typing import Any

from aiohttp import web

KEY = "e2b_test"


def envelope(message: dict[str, Any], flags: int = 0) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body)) + body


class StandIn:
    def __init__(self) -> None:
        self.sandboxes: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.break_stream = False
        self.url = ""

    async def create(self, request: web.Request) -> web.Response:
        if request.headers.get("X-API-Key") != KEY:
            return web.json_response({"code": 401, "message": "Invalid API key"}, status=401)
        asked = await request.json()
        self.asked.append(asked)
        if asked["templateID"] == "absent":
            return web.json_response(
                {"code": 404, "message": "template 'absent' not found"}, status=404
            )
        name = f"i{len(self.asked)}"
        self.sandboxes.add(name)
        about = {"sandboxID": name, "envdAccessToken": "token", "daemonURL": f"{self.url}/{name}"}
        return web.json_response(about, status=201)

    async def delete(self, request: web.Request) -> web.Response:
        self.sandboxes.discard(request.match_info["name"])
        return web.Response(status=204)

    async def files(self, request: web.Request) -> web.Response:
        part = await (await request.multipart()).next()
        path = Path(request.query["path"])
        path.write_bytes(await part.read())  # type: ignore[union-attr]
        return web.json_response([{"path": str(path)}])

    async def start(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["name"] not in self.sandboxes:
            return web.json_response({"message": "The sandbox was not found"}, status=502)
        assert request.headers["X-Access-Token"] == "token"
        body = await request.read()
        process = json.loads(body[5:])["process"]
        response = web.StreamResponse(headers={"Content-Type": "application/connect+json"})
        await response.prepare(request)
        child = await asyncio.create_subprocess_exec(
            process["cmd"],
            *process["args"],
            env=process["envs"],
            cwd=process["cwd"],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await response.write(envelope({"event": {"start": {"pid": child.pid}}}))
        out, err = await child.communicate()
        for name, data in (("stdout", out), ("stderr", err)):
            for at in range(0, len(data), 30_000):
                text = base64.b64encode(data[at : at + 30_000]).decode()
                await response.write(envelope({"event": {"data": {name: text}}}))
        if not self.break_stream:
            code = child.returncode or 0
            end = {"exited": True, "status": f"exit status {code}"}
            # as protobuf's JSON has it: a zero is left out
            end |= {"exitCode": code if code > 0 else 128 - code} if code else {}
            await response.write(envelope({"event": {"end": end}}))
        await response.write(envelope({}, flags=2))
        return response


async def serve() -> tuple[StandIn, web.AppRunner]:
    stand_in = StandIn()
    app = web.Application()
    app.router.add_post("/sandboxes", stand_in.create)
    app.router.add_delete("/sandboxes/{name}", stand_in.delete)
    app.router.add_post("/{name}/files", stand_in.files)
    app.router.add_post("/{name}/process.Process/Start", stand_in.start)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return stand_in, runner
