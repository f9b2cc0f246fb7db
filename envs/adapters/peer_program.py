"""A program in a peer's Python, asked from any event loop; started when it is first asked, and again where it died."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from envs.adapters.json_lines import Program, start_program
from envs.adapters.peer import own_environment

Answer = Mapping[str, Any]
"""With `result` or `error`."""


class PeerProgram:
    """It lives on an event loop of its own, and ends with our process where `end` isn't called.

    program = PeerProgram(["python", "side.py"], what="the grader's process")
    answer = await asyncio.wrap_future(program.ask("grade", {"log": ""}, timeout_s=60))
    """

    def __init__(self, command: Sequence[str], *, what: str) -> None:
        self.command, self.what = tuple(command), what
        self._numbers = itertools.count(1)
        self._program: Program | None = None
        self._starting = asyncio.Lock()

    @property
    def process(self) -> asyncio.subprocess.Process | None:
        return self._program.process if self._program is not None else None

    def ask(
        self, method: str, given: Mapping[str, Any], *, timeout_s: float
    ) -> concurrent.futures.Future[Answer]:
        """TimeoutError where it does not answer, InfraFault where it has ended."""
        return asyncio.run_coroutine_threadsafe(self._ask(method, given, timeout_s), _loop())

    def end(self) -> None:
        if self._program is not None:
            asyncio.run_coroutine_threadsafe(self._program.end(), _loop()).result()

    async def _ask(self, method: str, given: Mapping[str, Any], timeout_s: float) -> Answer:
        async with self._starting:
            if self._program is None or not self._program.alive:
                self._program = await start_program(
                    self.command, what=self.what, env=own_environment(), cwd=os.getcwd()
                )
        message = {"id": next(self._numbers), "method": method, "params": dict(given)}
        async with asyncio.timeout(timeout_s):
            answer = await self._program.send(message)
        assert answer is not None
        return answer


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="peer programs", daemon=True).start()
    return loop
