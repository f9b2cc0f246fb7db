"""Sandboxes that stand ready, so that an attempt does not wait for the start of its own.

    pool = SandboxPool(open_bwrap, warm=4)
    sandbox = await pool.take(spec)          # a ready one of that spec, or a new one
    ...
    await sandbox.close()                    # single use: none comes back
    await pool.close()

Consumes: starts of the backend, at most `at_once` at a time. Produces: one sandbox a `take`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from envs.sandbox.spec import SandboxSpec
from rlframe.sandbox.protocol import Sandbox

Opens = Callable[[SandboxSpec], Awaitable[Sandbox]]


@dataclass(slots=True)
class SandboxPool:
    """Of one event loop."""

    opens: Opens
    warm: int = 0
    """Kept ready for each of the specs that were asked for last."""
    specs: int = 4
    """How many specs' sandboxes stand ready at most."""
    at_once: int = 4
    """Starts at the same time."""
    taken: int = 0
    ready_when_taken: int = 0
    _ready: OrderedDict[SandboxSpec, deque[Sandbox]] = field(default_factory=OrderedDict)
    _starting: dict[SandboxSpec, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _gate: asyncio.Semaphore | None = None
    _closed: bool = False

    async def take(self, spec: SandboxSpec) -> Sandbox:
        """Raises what the backend raises."""
        self.taken += 1
        ready = self._ready.setdefault(spec, deque())
        self._ready.move_to_end(spec)
        sandbox = ready.popleft() if ready else None
        await self._drop_old()
        self._refill(spec)
        if sandbox is not None:
            self.ready_when_taken += 1
            return sandbox
        return await self._start(spec)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ready in self._ready.values():
            while ready:
                await ready.popleft().close()

    async def settle(self) -> None:
        """Until everything that was begun stands ready."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, spec: SandboxSpec) -> Sandbox:
        if self._gate is None:
            self._gate = asyncio.Semaphore(self.at_once)
        async with self._gate:
            return await self.opens(spec)

    def _refill(self, spec: SandboxSpec) -> None:
        missing = self.warm - len(self._ready[spec]) - self._starting.get(spec, 0)
        for _ in range(missing):
            self._starting[spec] = self._starting.get(spec, 0) + 1
            task = asyncio.create_task(self._make_ready(spec))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make_ready(self, spec: SandboxSpec) -> None:
        try:
            sandbox = await self._start(spec)
        except Exception:  # noqa: BLE001 - whoever takes one starts it himself, and is told
            return
        finally:
            self._starting[spec] -= 1
        if self._closed or spec not in self._ready:
            await sandbox.close()
        else:
            self._ready[spec].append(sandbox)

    async def _drop_old(self) -> None:
        while len(self._ready) > self.specs:
            _, old = self._ready.popitem(last=False)
            for sandbox in old:
                await sandbox.close()
