"""Operations, parameters and saved activations of the real model, counted on the meta device.

The second count beside the formulas of `rlframe.model_costs`, and independent of them: the model is built at
full width, every matrix product that its modules issue is counted by torch, nothing is allocated. Three
steps depend on values, which meta tensors don't have, and are given here instead: an indexer scores
`context` keys (by its own modules and `index_scores`) but any ids come of it; sparse attention gathers its
rows (it could also multiply a wide window, and waste some); tokens go to the experts evenly.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rlframe.config.schema import LayoutConfig
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.pipeline import chunks_of
from trainer.megatron.parallel import destroy_parallel, init_parallel
from trainer.models.glm import attention, tiles, windows
from trainer.models.glm.attention import LatentAttention
from trainer.models.glm.config import glm_fields
from trainer.models.glm.key_selection import index_scores
from trainer.models.glm.model import GlmModel
from trainer.models.glm.sparse_attention import sparse_attention
from trainer.models.glm.windows import Window
from trainer.models.packed import PackedBatch, forward
from trainer.models.transformer import transformer_config

META = torch.device("meta")


@dataclass(slots=True)
class Counted:
    """Forward operations of one token at the end of `context` tokens, and what is kept of it."""

    parameters: int = 0
    linear: float = 0.0
    core: float = 0.0
    indexer: float = 0.0
    saved_bytes: float = 0.0
    """What autograd keeps of one token for the backward pass, of all layers and the head."""


@dataclass(slots=True)
class _Parts:
    """Operations inside the two parts that are told from the rest."""

    core: float = 0.0
    indexer: float = 0.0
    storages: dict[int, Tensor] = field(default_factory=dict)


def count_alone(shape: GlmShape, *, context: int, tokens: int = 0) -> Counted:
    """Both of the following in a process that is in no process group: a group of one is made for it.

    `tokens`: by default as few as give every expert one.
    """
    with tempfile.TemporaryDirectory() as directory:
        init_parallel(
            layout=LayoutConfig(),
            rank=0,
            world_size=1,
            init_method=f"file://{directory}/store",
            device="cpu",
            timeout_s=60.0,
            seed=0,
        )
        try:
            shape = replace(shape, mtp_layers=0)
            few = shape.experts // math.gcd(shape.experts, shape.experts_per_token)
            model = build_on_meta(shape)
            return count_on_meta(model, shape, context=context, tokens=tokens or few)
        finally:
            destroy_parallel()


def build_on_meta(shape: GlmShape, *, dtype: str = "bfloat16") -> GlmModel:
    """The whole model on one rank; `trainer.megatron.parallel.init_parallel` comes first."""
    chunks = chunks_of([shape.layers])
    config = transformer_config(
        glm_fields(shape, chunks, expert_ranks=1),
        layout=LayoutConfig(),
        dtype=dtype,
        passed={},
        role="policy",
    )
    with META:
        model = GlmModel(config, shape, role="policy", chunks=chunks, form="absorbed")
    return model.to(META)  # type: ignore[no-any-return]  # routers' biases say their own device


def count_on_meta(model: GlmModel, shape: GlmShape, *, context: int, tokens: int) -> Counted:
    """`tokens` queries, each after `context` keys; as many go to every expert, so choose a multiple.

    The model without its MTP layer runs: give a shape without one.
    """
    parts = _Parts()
    packed = PackedBatch(
        token_ids=torch.zeros(tokens, dtype=torch.int64, device=META),
        positions=torch.zeros(tokens, dtype=torch.int64, device=META),
        cu_seqlens=torch.zeros(2, dtype=torch.int32, device=META),
        max_length=context,
        num_tokens=tokens,
    )
    counter = FlopCounterMode(display=False)
    with _substitutes(model, shape, context, parts), counter, _saved(model, parts):
        logits = forward(model, packed)
    assert logits.requires_grad
    total = float(counter.get_total_flops())
    kept = sum(t.untyped_storage().nbytes() for t in parts.storages.values())
    return Counted(
        parameters=sum(t.numel() for t in model.state_dict().values() if isinstance(t, Tensor)),
        linear=(total - parts.core - parts.indexer) / tokens,
        core=parts.core / tokens,
        indexer=parts.indexer / tokens,
        saved_bytes=kept / tokens,
    )


@contextmanager
def _saved(model: torch.nn.Module, parts: _Parts) -> Iterator[None]:
    """Each storage once, parameters left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            parts.storages[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


@contextmanager
def _substitutes(model: GlmModel, shape: GlmShape, context: int, parts: _Parts) -> Iterator[None]:
    def choose(
        self: LatentAttention, inputs: Tensor, latent: Tensor, packed: PackedBatch
    ) -> Tensor:
        return _choose(self, inputs, latent, packed, context=context, parts=parts)

    def attend(*inputs: Any, **options: Any) -> Tensor:
        with _adding(parts, "core"):
            return sparse_attention(*inputs, **options)

    def one_wide_window(ids: Tensor, *, heads: int) -> list[Window]:
        wide = tiles.DENSE_WIDTH * ids.shape[1] + 1
        return [Window(0, ids.shape[0], (0,), wide)]

    for module in model.modules():
        if isinstance(module, MoELayer):
            module.token_dispatcher = EvenDispatcher(shape.experts, shape.experts_per_token)
    with (
        patch.object(LatentAttention, "choose", choose),
        patch.object(attention, "sparse_attention", attend),
        patch.object(tiles, "id_windows", one_wide_window),
        patch.dict(windows.MAX_TILE, {"meta": 1 << 40}),
    ):
        yield


@torch.no_grad()
def _choose(
    layer: LatentAttention,
    inputs: Tensor,
    latent: Tensor,
    packed: PackedBatch,
    *,
    context: int,
    parts: _Parts,
) -> Tensor:
    assert layer.indexer is not None
    angles = layer.own_angles(packed)
    keys = layer.indexer.keys(inputs, angles)
    queries, weights = layer.indexer.queries(latent, angles), layer.indexer.weights(inputs)
    window = Window(0, len(inputs), (0,), context)
    with _adding(parts, "indexer"):
        index_scores(queries, weights, keys.new_empty(context, keys.shape[1]), window)
    chosen = min(context, layer.shape.index_top_k)
    return torch.empty(len(inputs), chosen, dtype=torch.int32, device=META)


@contextmanager
def _adding(parts: _Parts, name: str) -> Iterator[None]:
    """The operations inside also go to one part's sum."""
    with FlopCounterMode(display=False) as counter:
        yield
    setattr(parts, name, getattr(parts, name) + counter.get_total_flops())


class EvenDispatcher:
    """In place of Megatron's: every expert gets as many tokens, which stay on this rank."""

    def __init__(self, experts: int, per_token: int) -> None:
        self._experts, self._per_token = experts, per_token

    def dispatch_preprocess(
        self, hidden: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._shape = hidden.shape
        return hidden.view(-1, hidden.shape[-1]), probs

    def token_dispatch(self, hidden: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, probs

    def dispatch_postprocess(self, hidden: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.zeros(len(hidden) * self._per_token, dtype=torch.int64, device=hidden.device)
        each, odd = divmod(len(rows), self._experts)
        assert not odd, "tokens * experts_per_token must be a multiple of the experts"
        chosen = probs.flatten().index_select(0, rows)
        return (
            hidden.index_select(0, rows),
            torch.full((self._experts,), each, device="cpu"),
            chosen,
        )

    def combine_preprocess(self, output: Tensor) -> Tensor:
        return output

    def token_combine(self, output: Tensor) -> Tensor:
        return output

    def combine_postprocess(self, output: Tensor) -> Tensor:
        return output.view(self._per_token, *self._shape).sum(0)
