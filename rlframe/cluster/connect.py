"""Start a Ray cluster here, or attach to a running one, by the same call.

    with connect(config.cluster, parts, env_name=config.env.name) as cluster:
        ...

Leaving the block, for whatever reason, disconnects, and stops what was started here.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rlframe.cluster import demand as demands
from rlframe.cluster import preflight, runtime_env
from rlframe.cluster.patience import start_patiently
from rlframe.cluster.reaper import Reaper
from rlframe.config.schema import ClusterConfig
from rlframe.errors import UserError, nearest

PROBE_TIMEOUT_S = 5.0
OBJECT_STORE_BYTES = 512 * 1024**2
"""Of a cluster started here: batches are small; weights never go through the object store."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A connected cluster."""

    started_here: bool
    node_addresses: tuple[str, ...]
    reaper: Reaper

    @property
    def one_host(self) -> bool:
        """Raylets of one host share its address, its files and its shared memory."""
        return len(set(self.node_addresses)) <= 1


@contextmanager
def connect(
    config: ClusterConfig, parts: list[demands.PartDemand], *, env_name: str
) -> Iterator[Cluster]:
    """Connects; raises UserError where the cluster can't be reached or lacks what the run asks for."""
    import ray

    environment = runtime_env.build(
        ship_code=bool(config.address), env_name=env_name, user=config.runtime_env
    )
    reaper = Reaper()
    try:
        if config.address:
            _attach(config.address, environment)
        else:
            _start(config, parts, environment)
            reaper.end_session(_session_directory())
        _check_resources(ray.cluster_resources(), parts, config)
        nodes = [n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]]
        yield Cluster(not config.address, tuple(nodes), reaper)
    finally:
        ray.shutdown()
        reaper.close()


def _session_directory() -> str:
    """Where every process of the Ray node started here has its logs open."""
    import ray

    return str(ray._private.worker.global_worker.node.get_session_dir_path())


def _start(
    config: ClusterConfig, parts: list[demands.PartDemand], environment: dict[str, object]
) -> None:
    """Ray 2.60 turns on token authentication by itself for a cluster that it starts."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    needed = demands.total(parts)
    cpus = max(os.cpu_count() or 1, math.ceil(needed.get("CPU", 0.0)) + 2)
    start_patiently(
        lambda: ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=preflight.count_gpus(),
            resources={k: v for k, v in needed.items() if k not in ("CPU", "GPU")} or None,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=config.dashboard,
            dashboard_host="127.0.0.1",
            runtime_env=environment,
            namespace="rlframe",
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    )


def _attach(address: str, environment: dict[str, object]) -> None:
    import ray

    try:
        _probe(address)
        ray.init(
            address=address,
            runtime_env=environment,
            namespace="rlframe",
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cluster.address: no Ray cluster answers at '{address}' ({reason}). Start one with "
            "`ray start --head --port=6379`, check RAY_AUTH_TOKEN if it uses token authentication, "
            "or leave cluster.address empty to start one here."
        ) from error


def _probe(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()


def _check_resources(
    offered: Mapping[str, float], parts: list[demands.PartDemand], config: ClusterConfig
) -> None:
    for key, value in demands.total(parts).items():
        if offered.get(key, 0.0) + 1e-9 >= value:
            continue
        who = ", ".join(
            f"{p.count} x {p.name}"
            for p in parts
            if {"CPU": p.cpus, "GPU": p.gpus, **p.resources}.get(key)
        )
        hint = "" if key in ("CPU", "GPU") else nearest(key, set(offered) - {"memory"})
        raise UserError(
            f"the Ray cluster at '{config.address or 'this machine'}' offers {offered.get(key, 0.0):g} "
            f"{key}, the run asks for {value:g} ({who}).{hint} Add nodes, or lower rollout.engines, "
            "trainer.*.layout or cluster.*_per_*."
        )
