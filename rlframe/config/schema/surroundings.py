"""Tasks, machines, weight transport, and what a person sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlframe.config.knob import knob

Dict = dict[str, Any]


@dataclass
class EnvConfig:
    """Where tasks come from, and what verifies the answers."""

    name: str = knob(
        "reasoning_gym",
        help="`reasoning_gym`, `dataset` (JSONL or Parquet), `mixed` (several, by weight), or `package.module:TaskSource` of your own",
    )
    args: Dict = knob(factory=dict, help="arguments of the environment's source")
    held_out: int = knob(128, help="held-out tasks", minimum=1)
    seed: int = knob(0, help="seed of the task stream")


@dataclass
class ClusterConfig:
    """Ray: which cluster, and what each actor takes of it."""

    address: str = knob(
        "", help="Ray cluster to attach to (`auto` or host:port); empty: start one here"
    )
    placement: str = knob(
        "colocated", help="engines beside ranks, or apart", allowed=("colocated", "disaggregated")
    )
    device: str = knob(
        "auto", help="what ranks and engines run on", allowed=("auto", "cpu", "cuda")
    )
    cpus_per_rank: float = knob(1.0, help="Ray CPUs of a trainer rank", minimum=0.0)
    cpus_per_engine: float = knob(1.0, help="Ray CPUs of an engine", minimum=0.0)
    gpus_per_rank: float = knob(1.0, help="GPUs of a trainer rank on `cuda`", minimum=0.0)
    gpus_per_engine: float = knob(1.0, help="GPUs of an engine on `cuda`", minimum=0.0)
    resources: Dict = knob(
        factory=dict,
        help="custom Ray resources by part (`engine`, `policy`, `critic`, `teacher`), to pin parts to nodes",
    )
    dashboard: bool = knob(False, help="start Ray's dashboard on loopback")
    runtime_env: Dict = knob(factory=dict, help="fields of Ray's runtime_env added to ours")
    min_memory_gib: float = knob(
        4.0, help="refuse to start with less free memory", unit="GiB", minimum=0.0
    )
    min_shm_gib: float = knob(
        0.5, help="refuse to start with less free shared memory", unit="GiB", minimum=0.0
    )


@dataclass
class SyncConfig:
    """How new weights reach the engines."""

    transport: str = knob("disk", help="how weights reach the engines", allowed=("disk", "tensor"))
    directory: str = knob(
        "",
        help="where `disk` writes, in a directory of its own; all nodes must see it (checked at start); "
        "empty: shared memory on one host, the run directory on several",
    )
    timeout_s: float = knob(120.0, help="how long one engine may take", unit="s", minimum=1)


@dataclass
class LoggingConfig:
    """What is shown and recorded while a run goes on."""

    live: str = knob(
        "auto", help="live terminal view; auto: on a terminal", allowed=("auto", "on", "off")
    )
    wandb: str = knob(
        "auto",
        help="auto: online with a key, offline without one",
        allowed=("auto", "online", "offline", "off"),
    )
    wandb_project: str = knob("rlframe", help="wandb project")
    wandb_entity: str = knob("", help="wandb entity; empty: your default")
    eval_every: int = knob(
        20,
        help="evaluate on held-out tasks every so many steps; 0: only first and last",
        unit="steps",
        minimum=0,
    )
    min_reward_rise: float = knob(
        0.0, help="exit 1 if the held-out reward did not rise by this; 0: no check"
    )
