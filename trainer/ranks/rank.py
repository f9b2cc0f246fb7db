"""The Ray actor of one rank. Thin: a backend's `RankTraining` does the work, this is where Ray meets it.

The driver imports this module to create the actors, and must not load torch: the heavy modules are
imported in the actor's process, when it starts.

All calls but `watch` and `ping` run one after the other in one thread; those two have threads of their
own (the concurrency group `watch`), so that they answer while a collective blocks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from rlframe.types import Float32Array, WeightManifest
from trainer.ranks.shard import RowShard
from trainer.ranks.spec import Backend, RankInfo, RankSpec
from trainer.ranks.training import HoldsTeachers, RankTraining

WATCH = "watch"
"""The concurrency group of calls that never wait for the rank's work."""


class RoleRank:
    """One rank of one role. `rendezvous` (rank 0 only), then `start`, then anything else.

    A rank does not outlive its role: Ray kills it when the driver ends, however that ends, even while
    it waits in a collective.
    """

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._store: Any = None
        self._running: RankTraining | None = None

    def rendezvous(self) -> str:
        """Opens the store where the ranks meet, on a free port of this host; returns its address."""
        from datetime import timedelta

        import ray.util
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()
        # Of several stores on one port of one process only the first listens: init_process_group
        # on rank 0 finds this one, so that nobody can take the port in between.
        self._store = TCPStore(
            host,
            0,
            is_master=True,
            timeout=timedelta(seconds=self._spec.collective_timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
        return f"tcp://{host}:{self._store.port}"

    def start(self, init_method: str) -> RankInfo:
        """Joins the others, builds the model, loads its weights. Collective."""
        import ray.util
        import torch

        from trainer.ranks.network import use_interface_of

        spec = self._spec
        use_interface_of(ray.util.get_node_ip_address())
        torch.set_num_threads(spec.num_threads)
        device = torch.device("cuda", 0) if spec.device == "cuda" else torch.device("cpu")
        self._running = _starter(spec.backend)(spec, init_method, device)
        return self._running.info()

    def logprobs(self, shard: RowShard) -> Float32Array | None:
        return self._training.logprobs(shard)

    def reference_logprobs(self, shard: RowShard) -> Float32Array | None:
        return self._training.reference_logprobs(shard)

    def teacher_logprobs(self, shard: RowShard) -> Float32Array | None:
        training = self._training
        assert isinstance(training, HoldsTeachers), "checked with the configuration"
        return training.teacher_logprobs(shard)

    def values(self, shard: RowShard) -> Float32Array | None:
        return self._training.values(shard)

    def update(self, shard: RowShard, step: int, actions: int) -> dict[str, float] | None:
        return self._training.update(shard, step=step, actions=actions)

    def export(self, version: int, directory: str) -> WeightManifest | None:
        return self._training.export(version, directory)

    def share(self, version: int) -> WeightManifest | None:
        return self._training.share(version)

    def export_hf(self, directory: str) -> None:
        self._training.export_hf(directory)

    def save(self, directory: str, step: int) -> None:
        self._training.save(directory, step)

    def load(self, directory: str) -> int:
        return self._training.load(directory)

    def shutdown(self) -> None:
        """Leaves the process groups, so that no peer sees a broken connection."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def watch(self) -> None:
        """Never returns: the driver learns of this process's death by the failure of this call."""
        threading.Event().wait()

    def ping(self) -> int:
        """Answers with the process id, even while the rank computes."""
        return os.getpid()

    @property
    def _training(self) -> RankTraining:
        assert self._running is not None, "start first"
        return self._running


def _starter(backend: Backend) -> Callable[[RankSpec, str, Any], RankTraining]:
    """What makes a rank of this backend; its libraries are loaded here."""
    if backend == "deepspeed":
        from trainer.deepspeed.start import start as start_deepspeed

        return start_deepspeed
    from trainer.megatron.training import start as start_megatron

    return start_megatron
