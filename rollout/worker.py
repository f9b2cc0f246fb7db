"""The Ray actor that runs attempts: many at a time, on one event loop.

Calls are few and large: `submit` takes many requests, `collect` waits until something has finished and
gives all that has. So Ray costs per batch, not per attempt.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from rlframe.interfaces import RolloutRequest
from rlframe.types import Status, Trajectory
from rollout.chat import Parser
from rollout.engine.client import EngineClient
from rollout.engine.parser_check import parser_for
from rollout.guard_setup import guard_of
from rollout.modes.white_box import WhiteBox
from rollout.policy_client import PolicySettings
from rollout.renderer import Renderer
from rollout.running_gateway import RunningGateway
from rollout.worker_spec import WorkerSpec

BATCHING_S = 0.005
"""After the first finished attempt `collect` waits this long for more."""


class Mode(Protocol):
    """What makes trajectories: `WhiteBox`, `BlackBox`."""

    async def run(self, request: RolloutRequest) -> Trajectory: ...


class RolloutWorker:
    """Made a Ray actor by the service; every method is a coroutine on its one event loop."""

    def __init__(self, spec: WorkerSpec, url: str, headers: Mapping[str, str]) -> None:
        self._spec, self._url, self._headers = spec, url, headers
        self._free = asyncio.Semaphore(spec.max_concurrency)
        self._free_by_domain = {
            domain: asyncio.Semaphore(limit) for domain, limit in spec.domain_concurrency.items()
        }
        self._running: dict[str, asyncio.Task[Trajectory]] = {}
        self._finished: asyncio.Queue[Trajectory | Exception] = asyncio.Queue()
        self._mode: Mode | None = None
        self._gateway: RunningGateway | None = None
        self._client: EngineClient | None = None

    async def start(self) -> None:
        """Loads tokenizer, parsers and the environment. UserError where they can't be."""
        spec = self._spec
        renderer = Renderer(
            spec.tokenizer_directory,
            must_bridge=spec.black_box is None,
            template_args=spec.template_args,
        )
        parser = parser_for(
            renderer,
            tool_call_parser=spec.tool_call_parser,
            reasoning_parser=spec.reasoning_parser,
        )
        self._client = EngineClient(
            self._url,
            headers=self._headers,
            vocab_size=spec.vocab_size,
            max_context_tokens=spec.max_context_tokens,
            request_timeout_s=spec.request_timeout_s,
            extras=spec.extras,
        )
        await self._client.__aenter__()
        if spec.black_box is None:
            self._mode = self._white_box(spec, self._client, renderer, parser)
        else:
            self._gateway = await RunningGateway.start()
            self._mode = self._gateway.black_box(
                spec, spec.black_box, self._client, renderer, parser
            )
        # What is loaded now stays: the collector need not walk through it under the calls (10% of a
        # gateway's CPU time).
        gc.collect()
        gc.freeze()

    @staticmethod
    def _white_box(
        spec: WorkerSpec, client: EngineClient, renderer: Renderer, parser: Parser
    ) -> WhiteBox:
        settings = PolicySettings(
            generate=client.generate,
            renderer=renderer,
            sampling=spec.sampling,
            max_context_tokens=spec.max_context_tokens,
            compaction=spec.compaction,
            parser=parser,
        )
        return WhiteBox(
            spec.make_source().make,
            settings,
            limits=spec.limits,
            sub_agents=spec.sub_agents,
            call_log_directory=spec.call_log_directory,
            guard=guard_of(spec, client, renderer),
        )

    async def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Returns at once. An id that is running already is not started again."""
        for request in requests:
            if request.id not in self._running:
                task = asyncio.create_task(self._run(request))
                self._running[request.id] = task
                # Not in `_run`: a task that is cancelled before it has begun never gets there.
                task.add_done_callback(partial(self._keep, request))

    async def collect(self, timeout_s: float) -> list[Trajectory]:
        """All that has finished, as soon as anything has; empty after `timeout_s`.

        Raises what an attempt raised: that is a bug of ours, and must not look like a slow attempt.
        """
        try:
            waiting = [await asyncio.wait_for(self._finished.get(), timeout_s)]
        except TimeoutError:
            return []
        if self._running:
            await asyncio.sleep(BATCHING_S)
        while not self._finished.empty():
            waiting.append(self._finished.get_nowait())
        for outcome in waiting:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in waiting if isinstance(outcome, Trajectory)]

    async def move(self, url: str, headers: Mapping[str, str]) -> None:
        """Model calls go to another address from now on."""
        if self._client is not None:
            self._client.move(url, headers)

    async def cancel(self, ids: Sequence[str]) -> None:
        """These attempts end now, as `aborted`: their environments are closed and their model calls
        given up, which frees the engine. Returns when that is done; an id that is not running is none."""
        cancelled = [self._running[i] for i in ids if i in self._running]
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)

    async def close(self) -> None:
        """Cancels what runs; environments and sandboxes are closed before this returns."""
        await self.cancel(list(self._running))
        if self._gateway is not None:
            await self._gateway.close()
        if self._client is not None:
            await self._client.close()

    async def _run(self, request: RolloutRequest) -> Trajectory:
        assert self._mode is not None
        # Its domain's place first: who waits for that must not keep others from running.
        async with self._place_of(request.task.domain), self._free:
            return await self._mode.run(request)

    def _keep(self, request: RolloutRequest, task: asyncio.Task[Trajectory]) -> None:
        """What `collect` gives, or raises. Cancelled: by `cancel`, nobody else holds the task."""
        del self._running[request.id]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        outcome = _aborted(request) if task.cancelled() else error or task.result()
        self._finished.put_nowait(outcome)

    def _place_of(self, domain: str) -> AbstractAsyncContextManager[Any]:
        limits = self._free_by_domain
        return limits.get(domain) or limits.get(domain.partition("/")[0]) or nullcontext()


def _aborted(request: RolloutRequest) -> Trajectory:
    """What the attempt had until then is in its call log, and trains nothing."""
    task = request.task
    return Trajectory(
        id=request.id,
        task_id=task.id,
        domain=task.domain,
        status=Status.ABORTED,
        traces=(),
        info={"error": "cancelled"},
    )
