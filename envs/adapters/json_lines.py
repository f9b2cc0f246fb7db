"""A program of somebody else's, spoken to in lines of JSON over its pipes: requests with ids, and their answers.

program = await start_program(["python", "server.py"], what="the MCP server")
answer = await program.send({"id": 1, "method": "tools/list"})     # a message with `result` or `error`
await program.send({"method": "notifications/initialized"})        # without id: nothing comes back
await program.end()
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlframe.errors import InfraFault

MAX_LINE = 16 << 20


@dataclass(slots=True)
class Program:
    """Requests may be under way at the same time. InfraFault once it has ended."""

    process: asyncio.subprocess.Process
    what: str
    waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = field(default_factory=dict)
    reading: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self.reading is not None and not self.reading.done()

    async def send(self, message: Mapping[str, Any]) -> Mapping[str, Any] | None:
        stdin, number = self.process.stdin, message.get("id")
        assert stdin is not None
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        if number is not None:
            self.waiting[number] = future
        try:
            if not self.alive:
                raise InfraFault(f"{self.what} has ended")
            stdin.write(json.dumps(message).encode() + b"\n")
            await stdin.drain()
            return await future if number is not None else None
        except ConnectionError as error:
            raise InfraFault(f"{self.what} has ended: {error}") from error
        finally:
            if number is not None:
                self.waiting.pop(number, None)

    async def read(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        try:
            while line := await stdout.readline():
                with contextlib.suppress(ValueError):  # a program's own prints are no messages
                    self._take(json.loads(line))
        except ValueError:
            pass  # a line without end: as good as none
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(InfraFault(f"{self.what} has ended"))

    def _take(self, message: Any) -> None:
        if isinstance(message, dict) and ("result" in message or "error" in message):
            future = self.waiting.get(message.get("id", -1))
            if future is not None and not future.done():
                future.set_result(message)

    async def end(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


async def start_program(
    command: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Program:
    """It gets only `env` and a PATH; InfraFault where it does not start."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath), **(env or {})},
            cwd=cwd,
            limit=MAX_LINE,
            start_new_session=True,
        )
    except OSError as error:
        raise InfraFault(f"{what} {command[0]} does not start: {error}") from error
    program = Program(process, what)
    program.reading = asyncio.create_task(program.read())
    return program
