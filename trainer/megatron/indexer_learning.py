"""What a training step does about the model's indexers: their loss's normaliser, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from rlframe.config.schema import IndexerConfig
from trainer.megatron.micro_batch import MicroBatch
from trainer.models.glm.indexer_training import divergence, owners


class IndexerLearning:
    """Every token of the mini-batch counts once, prompts too, whichever of them are actions."""

    def __init__(self, model: torch.nn.Module, config: IndexerConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._owners = owners(model)

    @property
    def active(self) -> bool:
        return self._config.mode != "frozen"

    def weigh(self, batches: Sequence[MicroBatch]) -> None:
        """Before the passes. Collective over data-parallel ranks."""
        if not self.active:
            return
        tokens = self._sum(sum(b.packed.num_tokens for b in batches), context=False, stages=False)
        for batch in batches:
            batch.packed.indexer_weight = self._config.coefficient / max(tokens, 1.0)

    def statistics(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        """After the passes: `indexer_kl`, nats a token and indexer. Collective over the whole role."""
        if not self.active or self._config.coefficient == 0.0:
            return {}
        total = self._sum(divergence(b.packed for b in batches), context=True, stages=True)
        indexers = self._sum(self._owners, context=True, stages=True) / _data_ranks()
        return {"indexer_kl": total / self._config.coefficient / max(indexers, 1.0)}

    def _sum(self, number: float, *, context: bool, stages: bool) -> float:
        value = torch.tensor(float(number), dtype=torch.float64, device=self._device)
        dist.all_reduce(
            value, group=parallel_state.get_data_parallel_group(with_context_parallel=context)
        )
        if stages:
            dist.all_reduce(value, group=parallel_state.get_pipeline_model_parallel_group())
        return float(value)


def _data_ranks() -> int:
    return int(parallel_state.get_data_parallel_world_size(with_context_parallel=True))
