"""The word embedding as MTP reads it: without gradient, on the last pipeline stage.

With one stage it is the model's own. With several the last stage keeps a copy, which is no parameter and
in no checkpoint: the first stage sends it before every update, so it is the model's to the bit.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class MtpEmbedding:
    """Not a module: its copy is not to be found among the model's weights."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        padded_vocab_size: int,
        max_positions: int,
        own: LanguageModelEmbedding | None,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        """`own`: the model's embedding where this stage has it."""
        self._table = own or LanguageModelEmbedding(
            config=config,
            vocab_size=padded_vocab_size,
            max_sequence_length=max_positions,
            position_embedding_type="none",
            tp_group=pg_collection.tp,
        )

    @torch.no_grad()
    def synchronise(self, device: torch.device) -> None:
        """Collective over the first and the last stage; nothing to do where they are one."""
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return
        self._table.to(device)
        dist.broadcast(
            self._table.word_embeddings.weight.data,
            src=parallel_state.get_pipeline_model_parallel_first_rank(),
            group=parallel_state.get_embedding_group(),
        )

    @torch.no_grad()
    def __call__(self, token_ids: Tensor) -> Tensor:
        """[T] -> [t, 1, hidden]; t = T / tensor with sequence parallelism."""
        embedded: Tensor = self._table(input_ids=token_ids.unsqueeze(0), position_ids=None)
        return embedded
