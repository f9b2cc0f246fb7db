"""The Ray actor that owns one engine: its server process and its weights.

No method is async: SGLang in an actor with async methods does not start (0.5.20), and one caller, the
pool, is enough.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlframe import weights
from rlframe.errors import InfraFault, RunError
from rlframe.types import WeightManifest
from rollout.engine import expected
from rollout.engine.control import Control
from rollout.engine.pulse import Sign
from rollout.engine.server import EngineSpec, Keys, SglangServer

PARTIAL_PAUSE = "in_place"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """A started engine."""

    url: str
    pid: int
    node_id: str


class EngineActor:
    """Made a Ray actor by the pool."""

    def __init__(
        self,
        spec: EngineSpec,
        keys: Keys,
        *,
        one_host: bool,
        signatures: Mapping[str, expected.Signature] | None = None,
    ) -> None:
        """`signatures`: the tensors that a sync must bring, where they are not the model's own in the
        dtype of `spec`."""
        self._spec = spec
        self._server = SglangServer(spec, keys, host=_interface(one_host))
        self._expected = signatures
        self._verifier = weights.Verifier()
        self._verified: dict[str, tuple[object, ...]] = {}
        self._version = 0

    @classmethod
    def over(cls, server: SglangServer, spec: EngineSpec, keys: Keys) -> EngineActor:
        """Without Ray, over a server that runs already (tests, benchmarks)."""
        actor = cls(spec, keys, one_host=True)
        actor._server = server
        return actor

    def start(self) -> EngineInfo:
        """Starts the server. RunError where it can't."""
        import ray

        self._server.start()
        node_id = ray.get_runtime_context().get_node_id()
        return EngineInfo(self._server.url, self._server.pid, node_id)

    def sign(self, *, timeout_s: float) -> Sign | None:
        """What tells whether it moves; None where its process is dead."""
        if not self._server.alive:
            return None
        on_cpu = self._spec.device == "cpu"
        return Sign(
            self._control.work(timeout_s=timeout_s), self._server.processor_s() if on_cpu else 0.0
        )

    def generates(self, *, timeout_s: float) -> bool:
        """A token comes back in time, as from a hung server it does not."""
        return self._server.alive and self._control.generates(timeout_s=timeout_s)

    def sync(self, manifest: WeightManifest, *, partial: bool) -> dict[str, float]:
        """Version v to `manifest.version`: check, pause, update, confirm, resume.

        Raises RunError naming what is wrong with the manifest, with the old weights still served, and
        InfraFault where the engine failed.
        """
        began = time.perf_counter()
        self._check(manifest)
        checked = time.perf_counter()
        control = self._control
        if partial:
            control.pause(PARTIAL_PAUSE)
        try:
            # Unpaused, SGLang itself waits for requests in flight and holds back new ones meanwhile.
            self._load(control, manifest)
            served = control.weight_version()
        finally:
            if partial:
                control.resume()
        if served != str(manifest.version):
            raise InfraFault(f"engine {self._spec.index} serves {served}, not {manifest.version}")
        self._version = manifest.version
        ended = time.perf_counter()
        return {"check_s": checked - began, "pause_s": ended - checked, "total_s": ended - began}

    def check_ahead(self, manifest: WeightManifest) -> None:
        """What `sync` would check, while the engine serves; a sync of the same, unchanged files is then
        spared it. RunError where they are refused."""
        self._check(manifest)
        self._verified[manifest.directory] = _state(manifest)

    def _load(self, control: Control, manifest: WeightManifest) -> None:
        if manifest.handles:
            control.load_from_handles(
                manifest.handles,
                tensor_parallel=int(self._spec.arguments.get("tp_size", 1)),
                version=manifest.version,
            )
        else:
            control.load_from_disk(manifest.directory, version=manifest.version)

    def stop(self) -> None:
        self._server.stop()

    @property
    def _control(self) -> Control:
        if self._server.control is None:
            raise InfraFault(f"engine {self._spec.index} is not started")
        return self._server.control

    def _check(self, manifest: WeightManifest) -> None:
        """SGLang dies of a wrong shape and answers success to a wrong name and to NaN: never let it try."""
        if manifest.version < self._version:
            raise RunError(
                f"weights of version {manifest.version} were offered to engine {self._spec.index}, which "
                f"serves {self._version} already"
            )
        if self._expected is None:
            self._expected = expected.signatures(self._spec.model_directory, self._spec.dtype)
        problems = expected.differences(self._expected, manifest)
        if not manifest.handles and self._verified.get(manifest.directory) != _state(manifest):
            problems += self._verifier.verify(manifest)
        if problems:
            shown = "; ".join(problems[:5]) + (
                f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            )
            raise RunError(f"weights of version {manifest.version} are refused: {shown}")


def _state(manifest: WeightManifest) -> tuple[object, ...]:
    """Changes when a file is written to, or other checksums are expected."""
    files = sorted(Path(manifest.directory).glob("*.safetensors"))
    stamps = [(*weights.file_identity(file), file.stat().st_mtime_ns) for file in files]
    return (*stamps, *((name, spec.checksum) for name, spec in manifest.tensors.items()))


def _interface(one_host: bool) -> str:
    """Loopback where everybody is on one host, else the address by which Ray knows this node."""
    if one_host:
        return "127.0.0.1"
    import ray

    return str(ray.util.get_node_ip_address())
