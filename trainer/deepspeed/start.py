"""A rank of the DeepSpeed backend: its process group, and DeepSpeed told of both.

DeepSpeed chooses its accelerator when it is first imported, so the choice is made here, before that.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from trainer.ranks.spec import RankSpec

if TYPE_CHECKING:
    from trainer.deepspeed.training import Training

SHARED_MEMORY_OP = "deepspeed_shm_comm"
"""Compiled at first use, for inference's all-reduce on a CPU, which nothing here calls."""


def start(spec: RankSpec, init_method: str, device: torch.device) -> Training:
    """Joins the other ranks and builds the model. Collective."""
    join_ranks(spec, init_method, device)
    from trainer.deepspeed.training import Training

    return Training(spec, device)


def join_ranks(spec: RankSpec, init_method: str, device: torch.device) -> None:
    """NCCL on CUDA, gloo on the CPU. A collective that takes longer than the spec's limit raises."""
    os.environ["DS_ACCELERATOR"] = device.type
    # Each actor sees its own GPU only; DeepSpeed reads these three.
    os.environ |= {"LOCAL_RANK": "0", "RANK": str(spec.rank), "WORLD_SIZE": str(spec.world_size)}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=spec.rank,
        world_size=spec.world_size,
        timeout=timedelta(seconds=spec.collective_timeout_s),
    )
    import deepspeed

    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=spec.collective_timeout_s),
    )
