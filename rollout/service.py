"""The rollout side as the driver sees it: workers that run attempts, engines that answer them.

    monitor thread   mends dead engines and the router, and engines that stand still while there is work
    collect          waits on the workers; a dead worker is started again and its attempts with it

What has not been collected is known here by its request, so that no attempt is lost with a worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from rlframe.errors import RunError
from rlframe.interfaces import RolloutRequest
from rlframe.types import Trajectory, WeightManifest
from rollout.engine.pool import EnginePool
from rollout.worker import RolloutWorker
from rollout.worker_spec import WorkerSpec

MONITOR_EVERY_S = 1.0
MAX_WORKER_RESTARTS = 10
CLOSE_S = 5.0
"""How long a worker may take to close its attempts' environments and sandboxes at the end."""


class RolloutPool:
    """Implements `rlframe.interfaces.RolloutService`."""

    def __init__(
        self,
        engines: EnginePool,
        spec: WorkerSpec,
        *,
        workers: int = 1,
        scheduling: Mapping[str, Any] | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._engines, self._spec = engines, spec
        self._scheduling = dict(scheduling or {"num_cpus": 0})
        self._on_event = on_event
        self._count = workers
        self._workers: list[Any] = []
        self._collects: dict[Any, int] = {}  # outstanding collect call -> worker
        self._open: dict[str, tuple[RolloutRequest, int]] = {}  # submitted, not collected
        self._restarts = 0
        self._closing = threading.Event()
        self._lock = threading.RLock()
        self._error: BaseException | None = None
        self._monitor = threading.Thread(target=self._watch, name="engine-monitor", daemon=True)

    def begin_start(self) -> None:
        self._engines.begin_start()

    def wait_started(self, progress: Callable[[str], None]) -> None:
        """Engines first, then the workers that call them."""
        self._engines.wait_started(progress)
        self._workers = [self._create() for _ in range(self._count)]
        _get([worker.start.remote() for worker in self._workers])
        progress(f"{self._count} rollout worker{'s' if self._count > 1 else ''} up")
        self._monitor.start()

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """An id that is under way already is not started again."""
        with self._lock:
            shares: dict[int, list[RolloutRequest]] = {}
            for request in requests:
                if request.id in self._open:
                    continue
                worker = len(self._open) % len(self._workers)
                self._open[request.id] = (request, worker)
                shares.setdefault(worker, []).append(request)
            for worker, share in shares.items():
                self._workers[worker].submit.remote(share)

    def cancel(self, ids: Sequence[str]) -> None:
        """Returns at once; `collect` gives each of them as `aborted`, or as it ended just before."""
        with self._lock:
            shares: dict[int, list[str]] = {}
            for known in (i for i in ids if i in self._open):
                shares.setdefault(self._open[known][1], []).append(known)
            for worker, share in shares.items():
                self._workers[worker].cancel.remote(share)

    def collect(self, timeout_s: float) -> list[Trajectory]:
        if self._error is not None:
            raise self._error
        with self._lock:
            waiting = set(self._collects.values())
            for index, worker in enumerate(self._workers):
                if index not in waiting:
                    self._collects[worker.collect.remote(timeout_s)] = index
            calls = list(self._collects)
        done, _ = ray.wait(calls, num_returns=1, timeout=timeout_s)
        collected: list[Trajectory] = []
        for call in done:
            index = self._collects.pop(call)
            try:
                collected += ray.get(call)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                self._restart(index)  # the worker, or the node that held its answer, is gone
        with self._lock:
            known = [t for t in collected if self._open.pop(t.id, None) is not None]
        return known

    def sync(self, manifest: WeightManifest) -> Mapping[str, float]:
        measured = self._engines.sync(manifest)
        replaced = int(measured["engines_replaced"])
        if replaced:
            self._on_event(
                f"{replaced} of the engines did not take version {manifest.version}: started again with it"
            )
        return measured

    def close(self) -> None:
        self._closing.set()
        if self._monitor.is_alive():
            self._monitor.join(timeout=MONITOR_EVERY_S * 2)
        farewells = [worker.close.remote() for worker in self._workers]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=CLOSE_S)
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        self._engines.close()

    def _create(self) -> Any:
        endpoint = self._engines.endpoint()
        options = {"max_concurrency": 64, **self._scheduling}
        remote = ray.remote(RolloutWorker).options(**options)
        return remote.remote(self._spec, endpoint.url, dict(endpoint.headers))

    def _restart(self, index: int) -> None:
        self._restarts += 1
        if self._restarts > MAX_WORKER_RESTARTS:
            raise RunError(f"rollout workers died {self._restarts} times; see logs/")
        with self._lock:
            worker = self._create()
            _get([worker.start.remote()])
            self._workers[index] = worker
            lost = [request for request, owner in self._open.values() if owner == index]
            worker.submit.remote(lost)
        self._on_event(
            f"rollout worker {index} had died and was started again with {len(lost)} attempts"
        )

    def _watch(self) -> None:
        while not self._closing.wait(MONITOR_EVERY_S):
            try:
                mended = self._engines.check(busy=bool(self._open))
                if mended:
                    endpoint = self._engines.endpoint()
                    for worker in self._workers:
                        worker.move.remote(endpoint.url, dict(endpoint.headers))
                for text in mended:
                    self._on_event(text)
            except BaseException as error:  # noqa: BLE001 - raised by the next collect
                if not self._closing.is_set():
                    self._error = error
                return


def _get(references: Sequence[Any]) -> Any:
    try:
        return ray.get(list(references))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
