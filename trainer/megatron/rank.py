"""The Ray actor of one rank. Thin: `Training` does the work, this is where Ray meets it.

The driver imports this module to create the actors, and must not load torch: the heavy modules are
imported in the actor's process, when it starts.

All calls but `watch` and `ping` run one after the other in one thread; those two have threads of their
own (the concurrency group `watch`), so that they answer while a collective blocks.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from rlframe.types import Float32Array, WeightManifest
from trainer.megatron.shard import RowShard
from trainer.megatron.spec import RankInfo, RankSpec

if TYPE_CHECKING:
    from trainer.megatron.training import Training

WATCH = "watch"
"""The concurrency group of calls that never wait for the rank's work."""


class MegatronRank:
    """One rank of one role. `rendezvous` (rank 0 only), then `start`, then anything else.

    A rank does not outlive its role: Ray kills it when the driver ends, however that ends, even while
    it waits in a collective.
    """

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._store: Any = None
        self._running: Training | None = None

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

        from trainer.megatron.network import use_interface_of
        from trainer.megatron.parallel import init_parallel
        from trainer.megatron.training import Training

        spec = self._spec
        use_interface_of(ray.util.get_node_ip_address())
        torch.set_num_threads(spec.num_threads)
        device = torch.device("cuda", 0) if spec.device == "cuda" else torch.device("cpu")
        init_parallel(
            layout=spec.config.layout,
            rank=spec.rank,
            world_size=spec.world_size,
            init_method=init_method,
            device=device,
            timeout_s=spec.collective_timeout_s,
            seed=spec.model.seed,
        )
        self._running = Training(spec, device)
        return self._running.info()

    def logprobs(self, shard: RowShard) -> Float32Array | None:
        return self._training.logprobs(shard)

    def reference_logprobs(self, shard: RowShard) -> Float32Array | None:
        return self._training.reference_logprobs(shard)

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
        from trainer.megatron.parallel import destroy_parallel

        self._running = None
        destroy_parallel()

    def watch(self) -> None:
        """Never returns: the driver learns of this process's death by the failure of this call."""
        threading.Event().wait()

    def ping(self) -> int:
        """Answers with the process id, even while the rank computes."""
        return os.getpid()

    @property
    def _training(self) -> Training:
        assert self._running is not None, "start first"
        return self._running
