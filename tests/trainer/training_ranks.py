"""What the ranks of a test do, without Ray: join, build, and hand out shards as the driver would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlframe.config.schema import LayoutConfig
from rlframe.types import BatchPlan, TrainRow
from trainer.megatron.parallel import init_parallel
from trainer.megatron.training import Training
from trainer.models.hf_bridge import export_hf
from trainer.objective import COLUMNS, OPTIONAL_COLUMNS
from trainer.ranks.shard import RowShard, cut


def join_ranks(rank: int, world_size: int, init_method: str, layout: LayoutConfig) -> None:
    torch.set_num_threads(1)
    init_parallel(
        layout=layout,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device="cpu",
        timeout_s=60,
        seed=1,
    )


def own_shard(
    training: Training, rows: Sequence[TrainRow], plan: BatchPlan, columns: Sequence[str]
) -> RowShard:
    return cut(rows, plan, columns)[training.info().data_rank]


def update(
    training: Training, rows: Sequence[TrainRow], plan: BatchPlan, *, step: int
) -> dict[str, float] | None:
    """As `RankedRole.update` calls it."""
    objective = type(training.spec.objective)
    given = [name for name in OPTIONAL_COLUMNS[objective] if rows[0].has(name)]
    columns = (*COLUMNS[objective], *given)
    actions = sum(int(row.loss_mask.sum()) for row in rows)
    return training.update(own_shard(training, rows, plan, columns), step=step, actions=actions)


def parameters(training: Training) -> dict[str, np.ndarray[Any, Any]]:
    """Whole tensors by Hugging Face name, on rank 0; collective."""
    return {name: tensor.float().numpy().copy() for name, tensor in export_hf(training.model)}


def randomise_biases(model: torch.nn.Module) -> None:
    """The router's, which start at zero; by layer, so that every layout has the same."""
    from trainer.models.language_model import model_chunks

    for chunk in model_chunks(model):
        for layer in chunk.decoder.layers:
            if hasattr(layer.mlp, "router"):
                generator = torch.Generator().manual_seed(layer.layer_number)
                layer.mlp.router.expert_bias.normal_(0.0, 0.02, generator=generator)


def gradients_of(training: Training) -> dict[str, np.ndarray[Any, Any]]:
    """Of the last update, whole, by Hugging Face name, on rank 0; collective. The role's
    `ddp.use_distributed_optimizer` must be false, or a rank has only its own part of the sum."""
    trained = [p for p in training.model.parameters() if p.requires_grad]
    weights = [p.data for p in trained]
    for parameter in trained:
        parameter.data = parameter.main_grad
    gradients = parameters(training)
    for parameter, weight in zip(trained, weights, strict=True):
        parameter.data = weight
    frozen = (".indexer.", "correction_bias")
    return {n: g for n, g in gradients.items() if not any(f in n for f in frozen)}
