"""One rank's place in the layout of its role: process groups, device, random state."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from trainer.megatron import platform


def init_parallel(
    *,
    layout: LayoutConfig,
    rank: int,
    world_size: int,
    init_method: str,
    device: torch.device | str,
    timeout_s: float,
    seed: int,
) -> None:
    """Join the role's process group and make Megatron's groups for the layout.

    No second set of gloo groups is made beside NCCL (`get_megatron_optimizer(...,
    use_gloo_process_groups=False)`).

    `rank` counts within the role: tensor-parallel neighbours are next to each other, then context, then
    data, then pipeline. Experts are spread over the ranks of a stage, expert-parallel neighbours next to
    each other. `init_method` is `tcp://host:port` of rank 0. NCCL on CUDA, gloo on the CPU (where
    `platform.install` is called first). A collective that takes longer than `timeout_s` raises.
    Raises UserError if the layout does not make `world_size` ranks.
    """
    device = torch.device(device)
    if layout.world_size != world_size:
        raise UserError(
            f"layout data={layout.data} x tensor={layout.tensor} x context={layout.context} x "
            f"pipeline={layout.pipeline} makes {layout.world_size} ranks, but {world_size} were started."
        )
    platform.install(str(device))
    # Megatron overlaps tensor-parallel collectives by this; it must be set before CUDA starts.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    _make_groups(layout, timeout_s)
    _seed(seed)


def _make_groups(layout: LayoutConfig, timeout_s: float) -> None:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=(
            layout.virtual_pipeline if layout.virtual_pipeline > 1 else None
        ),
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=1,
        distributed_timeout_minutes=timeout_s / 60,  # a fraction is fine: it makes a timedelta
        create_gloo_process_groups=False,
    )


def _seed(seed: int) -> None:
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def destroy_parallel() -> None:
    """Leave all groups. Does nothing if `init_parallel` was not called."""
    from megatron.core import parallel_state

    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
