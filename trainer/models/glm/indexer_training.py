"""Trains a model's indexers: hangs `IndexerLoss` on the attention of every layer.

`prepare` switches a model over; after that every micro-batch whose `PackedBatch.indexer_weight` is above 0
trains the indexers beside whatever else it is used for. Its losses stay on the micro-batch
(`packed.indexer_losses`), from the owner's forward pass to its backward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from rlframe.config.schema import IndexerConfig
from rlframe.errors import UserError
from rlframe.model_shapes.glm import GlmShape
from trainer.models.glm.attention import AttentionRecord, LatentAttention
from trainer.models.glm.indexer_loss import IndexerLoss, attach
from trainer.models.glm.tiles import Ids, Ranges
from trainer.models.language_model import LanguageModel, model_chunks
from trainer.models.packed import PackedBatch


def prepare(model: torch.nn.Module, config: IndexerConfig, *, key: str) -> None:
    """Sets observers on every layer's attention, and what may learn. `key`: the config's, for messages.

    `frozen`: nothing changes. `dense_warmup`: everything but the indexers is frozen.
    Raises UserError for a model without indexers, and for layers served in another pipeline part where
    `target=served`.
    """
    if config.mode == "frozen":
        return
    layers = [m for m in model.modules() if isinstance(m, LatentAttention)]
    if not layers:
        raise UserError(f"{key}.mode={config.mode} trains indexers, and this model has none.")
    if config.target == "served":
        _check_groups(model_chunks(model)[0], key)
    if config.mode == "dense_warmup":
        model.requires_grad_(False)
    trainer = IndexerTrainer(_served(layers) if config.target == "served" else {})
    for layer in layers:
        layer.observer = trainer
        if layer.indexer is not None:
            layer.indexer.requires_grad_(True)
    if config.mode == "dense_warmup":
        _let_gradients_begin(model)


class IndexerTrainer:
    """The observer. `served`: per owner, how many layers its target is the mean of; without: its own."""

    def __init__(self, served: dict[int, int]) -> None:
        self._served = served

    def __call__(
        self, attention: LatentAttention, record: AttentionRecord, packed: PackedBatch, out: Tensor
    ) -> Tensor:
        if not attention.training or packed.indexer_weight == 0.0:
            return out
        if record.source != record.layer:
            if self._served:
                _add(packed.indexer_losses[record.source], record)
            return out
        queries, weights, keys = index_outputs(attention, record, packed)
        loss = packed.indexer_losses.get(record.layer)
        if loss is None:
            loss = packed.indexer_losses[record.layer] = IndexerLoss(
                queries,
                weights,
                keys,
                selection=_ranges(packed) if record.ids is None else Ids(record.ids),
                token_weights=(packed.rows < packed.num_tokens) * packed.indexer_weight,
                served=self._served.get(record.layer, 1),
                group=parallel_state.get_tensor_model_parallel_group(),
            )
        _add(loss, record)
        return attach(out, queries, weights, keys, loss=loss)


def index_outputs(
    attention: LatentAttention, record: AttentionRecord, packed: PackedBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The owner's queries and weights for every query of this rank, and the keys of the whole row.

    With sequence parallelism every tensor-parallel rank computes the same gradient of all of them, so the
    way back takes this rank's part and does not sum.
    """
    indexer = attention.indexer
    assert indexer is not None, f"layer {record.layer} is its own source and owns no indexer"
    angles = attention.own_angles(packed)
    queries = indexer.queries(record.query_latent, angles)
    weights = indexer.weights(record.inputs)
    keys = indexer.keys(record.inputs, angles)
    if attention.config.sequence_parallel:
        queries, weights, keys = (
            gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False)
            for x in (queries, weights, keys)
        )
    return queries, weights, attention.all_rows(keys, packed)


def divergence(batches: Iterable[PackedBatch]) -> float:
    """The indexers' losses of these micro-batches on this rank, summed."""
    losses = [loss for packed in batches for loss in packed.indexer_losses.values()]
    return float(sum(loss.divergence.double() for loss in losses if loss.divergence is not None))


def owners(model: torch.nn.Module) -> int:
    """How many layers on this rank own an indexer."""
    layers = (m for m in model.modules() if isinstance(m, LatentAttention))
    return sum(layer.indexer is not None for layer in layers)


def _add(loss: IndexerLoss, record: AttentionRecord) -> None:
    loss.add(record.queries, record.rows, scale=record.scale)


def _ranges(packed: PackedBatch) -> Ranges:
    return Ranges(packed.rows - packed.positions, packed.rows)


def _served(layers: Sequence[LatentAttention]) -> dict[int, int]:
    return dict(Counter(layer.place.source for layer in layers))


def _check_groups(model: LanguageModel, key: str) -> None:
    """Looks at the whole model, so that every rank raises."""
    shape = model.shape
    assert isinstance(shape, GlmShape)
    for number, chunk in enumerate(model.chunks):
        if not shape.indexer_types[chunk.first]:
            raise UserError(
                f"{key}.target=served needs every layer in the pipeline part of its indexer, but part "
                f"{number} begins with layer {chunk.first}, which has none: choose pipeline_layers so that "
                f"each part begins with an indexer's layer, or {key}.target=own."
            )


def _let_gradients_begin(model: torch.nn.Module) -> None:
    """With every weight before it frozen, a recomputed layer would be thought to have no gradient."""
    for name, module in model.named_modules():
        if name.split(".")[-1] == "embedding":
            module.register_forward_hook(_wants_gradient)


def _wants_gradient(_module: torch.nn.Module, _inputs: object, out: Tensor) -> Tensor:
    return out.requires_grad_() if torch.is_grad_enabled() else out
