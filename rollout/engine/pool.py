"""All engines of a run: started in parallel, synced to one version, watched, mended, ended.

An engine serves only at the pool's version: one that is started again is synced before the router hears
of it, and one that refuses or fails a sync is taken out and started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlframe.errors import InfraFault, RunError
from rlframe.types import WeightManifest
from rollout.engine.actor import EngineActor, EngineInfo
from rollout.engine.pulse import Pulse
from rollout.engine.router import Router
from rollout.engine.server import EngineSpec, Keys

SIGN_TIMEOUT_S = 1.0
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where model calls go."""

    url: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Engine:
    spec: EngineSpec
    options: Mapping[str, Any]
    pulse: Pulse
    actor: Any = None
    info: EngineInfo | None = None


class EnginePool:
    """See the module's docstring. Used from the driver; `check` and `sync` exclude each other."""

    def __init__(
        self,
        specs: Sequence[EngineSpec],
        *,
        scheduling: Sequence[Mapping[str, Any]],
        router: bool,
        router_arguments: Mapping[str, Any],
        one_host: bool,
        partial: bool,
        sync_timeout_s: float,
        max_restarts: int,
        hung_after_s: float,
    ) -> None:
        """`scheduling`: Ray actor options, one an engine."""
        self._engines = [
            _Engine(s, o, Pulse(hung_after_s)) for s, o in zip(specs, scheduling, strict=True)
        ]
        self._keys = Keys()
        self._one_host, self._partial = one_host, partial
        self._sync_timeout_s = sync_timeout_s
        self._restarts_left = max_restarts
        self._manifest: WeightManifest | None = None
        self._lock = threading.RLock()
        self._router: Router | None = None
        if router or len(self._engines) > 1:
            host = "127.0.0.1" if one_host else _own_address()
            self._router = Router(
                host=host,
                keys=self._keys,
                arguments=router_arguments,
                log_directory=specs[0].log_directory,
            )

    def begin_start(self) -> None:
        """All engines start at the same time; returns at once."""
        for engine in self._engines:
            self._create(engine)
        self._starting = [engine.actor.start.remote() for engine in self._engines]

    def wait_started(self, progress: Callable[[str], None]) -> None:
        """Until every engine and the router answer. RunError with the log of the one that did not."""
        import ray

        if self._router is not None:
            self._router.start()
        pending = dict(zip(self._starting, self._engines, strict=True))
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            engine = pending.pop(ready[0])
            engine.info = _get(ready[0])
            self._register(engine)
            up = len(self._engines) - len(pending)
            progress(f"engine {up}/{len(self._engines)} is up at {engine.info.url}")

    def endpoint(self) -> Endpoint:
        """Stable over restarts with a router; without one it may change after `check`."""
        info = self._engines[0].info
        url = self._router.url if self._router else (info.url if info else "")
        return Endpoint(url=url, headers={"Authorization": f"Bearer {self._keys.api}"})

    def sync(self, manifest: WeightManifest) -> dict[str, float]:
        """Every engine to this version. RunError where the manifest itself is refused, or where no engine
        is left. An engine that fails on good weights is started again."""
        import ray

        with self._lock:
            calls = {
                engine.actor.sync.remote(manifest, partial=self._partial): engine
                for engine in self._engines
            }
            done, late = ray.wait(list(calls), num_returns=len(calls), timeout=self._sync_timeout_s)
            times: list[dict[str, float]] = []
            failed = [calls[call] for call in late]
            for call in done:
                try:
                    times.append(_get(call))
                except (InfraFault, ray.exceptions.RayActorError):
                    failed.append(calls[call])
            self._manifest = manifest
            for engine in failed:
                self._replace(engine)
            for engine in self._engines:
                engine.pulse.beat()
            slowest = {k: max(t[k] for t in times) for k in times[0]} if times else {}
            gigabytes = manifest.num_bytes / 1e9
            return {**slowest, "gigabytes": gigabytes, "engines_replaced": float(len(failed))}

    def check(self, *, busy: bool) -> list[str]:
        """Finds engines and a router that are dead, and starts them again; says what it did.

        `busy`: hung ones too, since there is work that they should get ahead with. RunError when
        `rollout.max_restarts` is used up.
        """
        with self._lock:
            mended = []
            if self._router is not None and not self._router.alive:
                self._spend_restart("the router")
                self._router.restart([e.info.url for e in self._engines if e.info])
                mended.append("sglang-router had died and was started again")
            for engine, why in self._unhealthy(busy=busy):
                self._replace(engine)
                mended.append(f"engine {engine.spec.index} {why} and was started again")
            return mended

    def processes(self) -> dict[str, int]:
        """Process ids by part, for diagnosis."""
        named = {f"engine-{e.spec.index}": e.info.pid for e in self._engines if e.info}
        if self._router is not None:
            named["router"] = self._router.pid
        return named

    def close(self) -> None:
        """Ends every process; never raises for one that is dead already."""
        import ray

        if self._router is not None:
            self._router.stop()
        stopping = [e.actor.stop.remote() for e in self._engines if e.actor is not None]
        ray.wait(stopping, num_returns=len(stopping), timeout=GRACE_S * 3) if stopping else None
        for engine in self._engines:
            if engine.actor is not None:
                ray.kill(engine.actor)
                engine.actor = None

    def _create(self, engine: _Engine) -> None:
        import ray

        remote = ray.remote(EngineActor).options(**engine.options)
        engine.actor = remote.remote(engine.spec, self._keys, one_host=self._one_host)

    def _register(self, engine: _Engine) -> None:
        if self._router is not None and engine.info is not None:
            self._router.add(engine.info.url)

    def _unhealthy(self, *, busy: bool) -> list[tuple[_Engine, str]]:
        """Engines, and what is the matter with each."""
        unhealthy = [(engine, "had died") for engine in self._feel_pulses()]
        dead = [engine for engine, _ in unhealthy]
        doubtful = []
        for engine in (e for e in self._engines if e not in dead):
            if not busy:
                engine.pulse.beat()
            elif engine.pulse.doubtful:
                doubtful.append(engine)
        if not doubtful:
            return unhealthy
        patience_s = max(engine.pulse.patience_s for engine in doubtful)
        calls = {e.actor.generates.remote(timeout_s=patience_s): e for e in doubtful}
        for engine, generated in self._answers(calls, timeout_s=patience_s):
            if generated:
                engine.pulse.beat()
        dead = (
            self._feel_pulses()
        )  # one with a long queue has moved meanwhile, though no token came
        for engine in doubtful:
            if engine in dead:
                unhealthy.append((engine, "had died"))
            elif engine.pulse.hung:
                unhealthy.append((engine, f"stood still for {engine.pulse.still_s:.0f} s"))
        return unhealthy

    def _feel_pulses(self) -> list[_Engine]:
        """Returns those that are dead."""
        calls = {e.actor.sign.remote(timeout_s=SIGN_TIMEOUT_S): e for e in self._engines}
        dead = []
        for engine, sign in self._answers(calls, timeout_s=SIGN_TIMEOUT_S):
            if sign is None:
                dead.append(engine)
            else:
                engine.pulse.feel(sign)
        return dead

    def _answers(
        self, calls: Mapping[Any, _Engine], *, timeout_s: float
    ) -> Iterator[tuple[_Engine, Any]]:
        """Asked all at once: one hung engine costs one deadline, however many there are. None for an
        actor that died, nothing for one that is late."""
        import ray

        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s + GRACE_S)
        for call in done:
            try:
                yield calls[call], ray.get(call)
            except ray.exceptions.RayActorError:
                yield calls[call], None

    def _replace(self, engine: _Engine) -> None:
        """A new actor and server at the current version, then back at the router."""
        import ray

        self._spend_restart(f"engine {engine.spec.index}")
        if engine.info is not None and self._router is not None:
            self._router.remove(engine.info.url)
        ray.kill(engine.actor)
        engine.spec = replace(engine.spec)
        self._create(engine)
        engine.info = _get(engine.actor.start.remote())
        if self._manifest is not None:
            _get(engine.actor.sync.remote(self._manifest, partial=self._partial))
        self._register(engine)
        engine.pulse.beat()

    def _spend_restart(self, what: str) -> None:
        if self._restarts_left <= 0:
            raise RunError(
                f"{what} failed, and rollout.max_restarts is used up; see logs/ in the run directory"
            )
        self._restarts_left -= 1


def _get(reference: Any) -> Any:
    """ray.get, with errors of ours as they were raised and not as Ray's wrapper."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
