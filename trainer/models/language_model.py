"""megatron-core's GPTModel on packed sequences, as policy or as critic: what every family shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from rlframe.errors import UserError
from rlframe.model_shapes.family import ModelShape
from rlframe.model_shapes.pipeline import Chunk
from trainer.models.asked_layer import AskedLayer
from trainer.models.packed import PackedBatch

Role = Literal["policy", "critic"]


class LanguageModel(GPTModel):  # type: ignore[misc]
    """One pipeline chunk of a model that reads packed sequences, and may end in a value head.

    `forward` takes a `PackedBatch` as `packed_seq_params` (see `trainer.models.packed.forward`). The last
    chunk gives logits [positions, vocabulary columns of this rank] or float32 values [positions] (of a
    distributional critic logits [positions, bins]); the others hidden states [tokens, 1, hidden] for the next one.
    """

    def __init__(
        self,
        config: TransformerConfig,
        shape: ModelShape,
        specs: TransformerBlockSubmodules,
        *,
        role: Role,
        chunks: Sequence[Chunk],
        part: int = 0,
    ) -> None:
        """`chunks` are the whole model's; `part` is the virtual stage that this is, on this rank."""
        stages = config.pipeline_model_parallel_size
        stage = parallel_state.get_pipeline_model_parallel_rank()
        self_chunk = chunks[part * stages + stage]
        super().__init__(
            config,
            specs,
            vocab_size=shape.padded_vocab_size(config.tensor_model_parallel_size),
            max_sequence_length=shape.max_positions,
            pre_process=self_chunk.is_first,
            post_process=self_chunk.is_last,
            share_embeddings_and_output_weights=shape.tied_embeddings and role == "policy",
            position_embedding_type="none",  # attention rotates queries and keys itself
            vp_stage=part if len(chunks) > stages else None,
        )
        self.shape = shape
        self.role = role
        self.chunks = tuple(chunks)
        self.chunk = self_chunk
        self._asked_early = any(isinstance(layer, AskedLayer) for layer in self.decoder.layers)
        if self_chunk.is_last and role == "critic":
            self.output_layer = ValueHead(config, outputs=shape.value_outputs)
        elif self_chunk.is_last:
            # The gather over tokens is done before positions are selected, not in the linear layer.
            head: Any = self.output_layer
            head.sequence_parallel = False
            head.allreduce_dgrad = config.tensor_model_parallel_size > 1
        mark_split_weights(self)

    @property
    def vocab_range(self) -> tuple[int, int]:
        """[start, end) of the token ids whose logits this rank computes; padding is not among them."""
        size = self.vocab_size // self.config.tensor_model_parallel_size
        start = size * parallel_state.get_tensor_model_parallel_rank()
        return min(start, self.shape.vocab_size), min(start + size, self.shape.vocab_size)

    def synchronise_mtp(self) -> None:
        """Before an update, on every rank: brings what MTP reads of other pipeline stages."""

    def forward(self, *inputs: Any, packed_seq_params: PackedBatch, **named: Any) -> Tensor:
        """Raises UserError for a sequence that is longer than the model's positions."""
        if packed_seq_params.max_length > self.shape.max_positions:
            raise UserError(
                f"a sequence of {packed_seq_params.max_length} tokens is longer than the model's "
                f"max_position_embeddings={self.shape.max_positions}."
            )
        return super().forward(*inputs, packed_seq_params=packed_seq_params, **named)  # type: ignore[no-any-return]

    def _postprocess(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        """Replaces GPTModel's: only the asked-for positions go through the output layer."""
        if not self.post_process:
            return hidden_states
        packed: PackedBatch = inputs["packed_seq_params"]
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        if not self._asked_early:
            hidden_states = packed.asked(hidden_states)
        if self.role == "critic":
            return self.output_layer(hidden_states)  # type: ignore[no-any-return]
        if packed.wants_hidden:
            return hidden_states.squeeze(1)
        return self.logits(hidden_states)

    def logits(self, hidden_states: Tensor, *, trains_head: bool = True) -> Tensor:
        """[positions, 1, hidden] -> [positions, vocabulary columns of this rank]; last chunk only."""
        weight = self.output_weight()
        weight = weight if trains_head else weight.detach()
        logits, _ = self.output_layer(hidden_states, weight=weight)
        start, end = self.vocab_range
        logits = logits.squeeze(1)
        # Only where there is padding: slicing costs a copy of the logits in the backward pass.
        return logits if end - start == logits.shape[1] else logits[:, : end - start]  # type: ignore[no-any-return]

    def output_weight(self) -> Tensor:
        """[vocabulary rows of this rank, padding included, hidden]; last chunk only."""
        if self.share_embeddings_and_output_weights:
            weight: Tensor = self.shared_embedding_or_output_weight()
            return weight
        own: Tensor = self.output_layer.weight
        return own


class ValueHead(torch.nn.Module):
    """hidden -> one float32 value, or logits over bins of values; the same on every tensor-parallel rank."""

    def __init__(self, config: TransformerConfig, *, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.empty(outputs, config.hidden_size, dtype=config.params_dtype)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[positions, 1, hidden] -> [positions], or [positions, outputs] of several."""
        outputs = hidden_states.squeeze(1).float() @ self.weight.float().t()
        return outputs.squeeze(1) if len(self.weight) == 1 else outputs


def model_chunks(model: torch.nn.Module) -> list[LanguageModel]:
    """The chunks in `model`, in the order of the layers: itself, in a wrapper (DDP), or in a list."""
    return [m for m in model.modules() if isinstance(m, LanguageModel)]


def mark_split_weights(model: torch.nn.Module) -> None:
    """Says which weights are split over tensor-parallel ranks; the others count once in a gradient norm.

    Megatron 0.16.1 marks them while it initialises them, which is turned off here.
    """
    dimensions = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}
    for module in model.modules():
        dimension = dimensions.get(type(module))
        weight = getattr(module, "weight", None)
        if dimension is not None and weight is not None:
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dimension, stride=1)
