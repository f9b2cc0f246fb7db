"""GLM-5 (`glm_moe_dsa`) of megatron-core's layers: our attention, its experts, ids shared over layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from rlframe.config.schema import MtpConfig
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.pipeline import Chunk
from trainer.models.dense_model import mlp_parts, mlp_spec
from trainer.models.glm.attention import Form, LatentAttention, Place, takes_all
from trainer.models.glm.mtp import MtpLayer
from trainer.models.glm.mtp_embedding import MtpEmbedding
from trainer.models.glm.travelling_ids import with_ids, without_ids
from trainer.models.language_model import LanguageModel, Role, mark_split_weights
from trainer.models.layers import RMSNorm
from trainer.models.packed import PackedBatch
from trainer.models.shared_ids import SharedIds


class GlmModel(LanguageModel):
    """A `LanguageModel` whose micro-batches carry the ids that its layers share.

    A part that begins with a layer without an indexer takes the ids from the part before it, which sends
    them along with the hidden states.
    """

    def __init__(
        self,
        config: TransformerConfig,
        shape: GlmShape,
        *,
        role: Role,
        chunks: Sequence[Chunk],
        part: int = 0,
        form: Form = "auto",
        train_indexer: bool = False,
        mtp: MtpConfig | None = None,
    ) -> None:
        """`mtp`: how the MTP layer trains, where `shape` has one; by default as `MtpConfig` says."""
        stage = parallel_state.get_pipeline_model_parallel_rank()
        chunk = chunks[part * config.pipeline_model_parallel_size + stage]
        specs = TransformerBlockSubmodules(
            layer_specs=[
                glm_layer_spec(
                    shape,
                    Place(layer, shape.source_layers[layer], part, form),
                    train_indexer=train_indexer,
                )
                for layer in chunk.layers
            ],
            layer_norm=RMSNorm,
        )
        super().__init__(config, shape, specs, role=role, chunks=chunks, part=part)
        self.part = part
        self._form = form
        self._glm = shape
        self._users = _users(shape, chunk)
        self._receives = not shape.indexer_types[chunk.first]
        self._sends = chunk.end < shape.layers and not shape.indexer_types[chunk.end]
        self.mtp_options = mtp or MtpConfig()
        self.mtp_layer: MtpLayer | None = None
        self.mtp_embedding: MtpEmbedding | None = None
        if shape.mtp_layers and role == "policy":
            self._add_mtp(Place(shape.layers, shape.layers, part, "absorbed"), train_indexer)
        _mark_experts(self)

    def _add_mtp(self, place: Place, train_indexer: bool) -> None:
        if self.chunk.is_last:
            self.mtp_layer = MtpLayer(
                self.config,
                self._glm,
                options=self.mtp_options,
                layer_spec=glm_layer_spec(self._glm, place, train_indexer=train_indexer),
                pg_collection=self.pg_collection,
            )
            mark_split_weights(self.mtp_layer)
        if self.chunk.is_last or self.chunk.is_first:
            self.mtp_embedding = MtpEmbedding(
                self.config,
                padded_vocab_size=self.vocab_size,
                max_positions=self._glm.max_positions,
                own=self.embedding if self.chunk.is_first else None,
                pg_collection=self.pg_collection,
            )

    def freeze_trunk(self) -> None:
        """Only the MTP layer is left to train, its indexer where that does."""
        own = "mtp_layer."
        for name, parameter in self.named_parameters():
            if not name.startswith(own):
                parameter.requires_grad_(False)
        for name, module in self.named_modules():
            if isinstance(module, LatentAttention) and not name.startswith(own):
                module.observer = None

    def synchronise_mtp(self) -> None:
        if self.mtp_embedding is not None:
            self.mtp_embedding.synchronise(next(self.parameters()).device)

    def forward(self, *inputs: Any, packed_seq_params: PackedBatch, **named: Any) -> Tensor:
        packed = packed_seq_params
        packed.shared_ids[self.part] = shared = SharedIds(self._users)
        if self._receives and self._ids_matter(packed):
            hidden, ids = without_ids(
                self.decoder.input_tensor, self.config.hidden_size, self._glm.index_top_k
            )
            self.decoder.input_tensor = hidden
            if self.config.sequence_parallel:
                ids = gather_from_sequence_parallel_region(ids, group=self.pg_collection.tp)
            shared.put(self._first_source, ids)
        return super().forward(*inputs, packed_seq_params=packed, **named)

    def _postprocess(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        packed: PackedBatch = inputs["packed_seq_params"]
        if self._sends and self._ids_matter(packed):
            shared, source = packed.shared_ids[self.part], self._glm.source_layers[self.chunk.end]
            ids = shared.get(source)
            assert ids is not None, f"the ids of layer {source} were dropped before they were sent"
            shared.used(source, self.chunk.end, comes_again=False)
            if self.config.sequence_parallel:
                ids = scatter_to_sequence_parallel_region(ids, group=self.pg_collection.tp)
            return with_ids(hidden_states, ids)
        if self.mtp_layer is not None and self.mtp_embedding is not None and self.training:
            joint = self.mtp_options.mode == "joint"
            given = hidden_states if joint else hidden_states.detach()
            packed.mtp = self.mtp_layer(given, packed, self.mtp_embedding)
        return super()._postprocess(hidden_states, **inputs)

    @property
    def _first_source(self) -> int:
        source: int = self._glm.source_layers[self.chunk.first]
        return source

    def _ids_matter(self, packed: PackedBatch) -> bool:
        if self._form != "auto":
            return self._form == "absorbed"
        return not takes_all(self._glm, packed)


def glm_layer_spec(shape: GlmShape, place: Place, *, train_indexer: bool) -> ModuleSpec:
    """Megatron's local layer with our norm and attention; experts, or a dense feed-forward part."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=LatentAttention,
                params={"shape": shape, "place": place, "train_indexer": train_indexer},
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=_experts_spec(shape) if shape.is_sparse(place.layer) else mlp_spec(),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _experts_spec(shape: GlmShape) -> ModuleSpec:
    shared = ModuleSpec(module=SharedExpertMLP, submodules=mlp_parts())
    return ModuleSpec(
        module=MoELayer,
        submodules=MoESubmodules(
            experts=ModuleSpec(module=SequentialMLP, submodules=mlp_parts()),
            shared_experts=shared if shape.shared_experts else None,
        ),
    )


def _mark_experts(model: torch.nn.Module) -> None:
    """Experts' gradients are summed over the ranks that have the same experts, which see other tokens.

    Megatron 0.16.1 marks them only where experts are spread over ranks. Where they are not, but tensor
    parallelism splits the tokens, their gradients would be those of one part of the tokens.
    """
    for module in model.modules():
        if isinstance(module, SequentialMLP):
            for parameter in module.parameters():
                parameter.allreduce = False


def _users(shape: GlmShape, chunk: Chunk) -> dict[int, frozenset[int]]:
    """Per source, who reads its ids in this chunk; the chunk's end stands for the next one."""
    users: defaultdict[int, set[int]] = defaultdict(set)
    for layer in chunk.layers:
        users[shape.source_layers[layer]].add(layer)
    if chunk.end < shape.layers and not shape.indexer_types[chunk.end]:
        users[shape.source_layers[chunk.end]].add(chunk.end)
    return {source: frozenset(readers) for source, readers in users.items()}
