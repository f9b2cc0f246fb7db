"""GLM-5's attention: multi-latent (MLA) over the rows that an indexer chose (DSA), as a Megatron module.

    row_s = [RMSNorm(c_s) | rope(k_s)]                    [latent | rope], one for all heads
    a_tsh = (W_kc,h^T q_th . c_s + rope(q_th) . k_s) / sqrt(nope + rope)
    o_th  = W_vc,h sum_s softmax_s(a_tsh) c_s,            s among the rows chosen for t

That is the *absorbed* form: W_kc and W_vc (the halves of kv_b_proj) are applied to queries and outputs, so
that a head reads rows as they are cached. The *expanded* form applies them to the rows and runs dense
attention; it computes the same where every row of a sequence is chosen, which is where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from rlframe.errors import RunError
from rlframe.model_shapes.glm import GlmShape
from trainer.models.glm.indexer import Indexer
from trainer.models.glm.key_selection import select_keys
from trainer.models.glm.rotary import rotate_pairs
from trainer.models.glm.sparse_attention import dense_attention, sparse_attention
from trainer.models.layers import ReplicatedLinear, RMSNorm
from trainer.models.packed import PackedBatch
from trainer.models.packed_attention import causal_attention

Form = Literal["auto", "absorbed", "expanded", "dense"]
"""`dense`: absorbed, over every row in range; nothing is chosen (the indexers' warm-up)."""


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """What one layer's attention computed, detached: all that training its indexer needs.

    T: this rank's queries (all of them on every tensor-parallel rank); K: rows of the whole packed row;
    t: T, or T / tensor with sequence parallelism.
    """

    layer: int  # 0-based
    source: int  # the layer whose ids it used; its own number if it owns an indexer
    inputs: Tensor  # [t, hidden]: z, the normalised input
    query_latent: Tensor  # [t, query_rank]: qr, normalised
    queries: Tensor  # [T, heads of this rank, latent + rope], absorbed
    rows: Tensor  # [K, latent + rope]
    ids: Tensor | None  # [T, k]; None: every row in range
    scale: float


Observer = Callable[["LatentAttention", AttentionRecord, PackedBatch, Tensor], Tensor]
"""Called with the attention's output [T, heads, latent]; returns it, maybe with a loss attached."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer stands among those that share ids, in one part of a pipeline stage."""

    layer: int  # 0-based
    source: int
    part: int = 0
    form: Form = "auto"


class LatentAttention(MegatronModule):  # type: ignore[misc]
    """hidden states [t, 1, hidden] -> the same; t = T / tensor with sequence parallelism, else T.

    The layer owns an indexer if it is its own source. `observer` is set by whoever trains indexers.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        shape: GlmShape,
        place: Place,
        pg_collection: ProcessGroupCollection,
        train_indexer: bool = False,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.shape, self.place = shape, place
        self.observer: Observer | None = None
        self.scale = shape.head_dim**-0.5
        self.heads = shape.heads // config.tensor_model_parallel_size
        self.recomputes_core = (
            config.recompute_granularity == "selective" and "core_attn" in config.recompute_modules
        )
        self._tensor_group, self._context_group = pg_collection.tp, pg_collection.cp
        split = {"config": config, "init_method": config.init_method, "bias": False}
        split |= {"tp_group": pg_collection.tp, "skip_bias_add": False}
        hidden, latent = shape.hidden_size, shape.latent_rank
        self.linear_q_down_proj = ReplicatedLinear(config, hidden, shape.query_rank)
        self.q_layernorm = RMSNorm(config, shape.query_rank, shape.norm_eps)
        self.linear_q_up_proj = ColumnParallelLinear(
            shape.query_rank, shape.heads * shape.head_dim, gather_output=False, **split
        )
        self.linear_kv_down_proj = ReplicatedLinear(config, hidden, shape.row_dim)
        self.kv_layernorm = RMSNorm(config, latent, shape.norm_eps)
        # Its weight is used as it is (see `_halves`); the module splits and saves it.
        self.linear_kv_up_proj = ColumnParallelLinear(
            latent, shape.heads * (shape.nope_dim + shape.value_dim), gather_output=False, **split
        )
        self.linear_proj = RowParallelLinear(
            shape.heads * shape.value_dim, hidden, input_is_parallel=True, **split
        )
        self.indexer = Indexer(config, shape) if place.source == place.layer else None
        if self.indexer is not None and not train_indexer:
            self.indexer.requires_grad_(False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None,
        *,
        packed_seq_params: PackedBatch,
        **_: Any,
    ) -> tuple[Tensor, None]:
        packed, inputs = packed_seq_params, hidden_states.squeeze(1)
        angles = packed.angles(self.shape.rope_dim, self.shape.rope_theta)
        latent = self.query_latent(inputs)
        queries = self.queries(latent, angles)
        rows = self.rows(inputs, packed)
        if self.expands(packed):
            out = self.attend_expanded(queries, rows, packed)
        else:
            absorbed = self.absorb(queries)
            if self.place.form == "dense":
                ids, taken = None, self.attend_all(absorbed, rows, packed)
            else:
                ids = self.ids(inputs, latent, packed)
                taken = self.attend(absorbed, rows, ids)
            if self.observer is not None:
                record = self._record(inputs, latent, absorbed, rows, ids)
                taken = self.observer(self, record, packed, taken)
            out = self.release(taken)
        projected, _bias = self.linear_proj(out.flatten(1).unsqueeze(1))
        return projected, None

    def query_latent(self, inputs: Tensor) -> Tensor:
        """[t, hidden] -> [t, query_rank], normalised: what queries and the indexer's queries are made of."""
        latent: Tensor = self.q_layernorm(self.linear_q_down_proj(inputs))
        return latent

    def queries(self, latent: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """-> [T, heads, nope + rope], the last part rotated by the angles of T positions."""
        shape = self.shape
        up, _ = self.linear_q_up_proj(latent.unsqueeze(1))
        by_head = up.view(-1, self.heads, shape.head_dim)
        rotated = rotate_pairs(by_head[..., shape.nope_dim :], *angles)
        return torch.cat((by_head[..., : shape.nope_dim], rotated), dim=-1)

    def rows(self, inputs: Tensor, packed: PackedBatch) -> Tensor:
        """[t, hidden] -> [K, latent + rope]: every token's row, on every rank."""
        shape = self.shape
        down = self.linear_kv_down_proj(inputs)
        latent = self.kv_layernorm(down[:, : shape.latent_rank])
        rows = torch.cat((latent, down[:, shape.latent_rank :]), dim=-1)
        if self.config.sequence_parallel:
            rows = gather_from_sequence_parallel_region(rows, group=self._tensor_group)
        elif self.config.tensor_model_parallel_size > 1:
            rows = copy_to_tensor_model_parallel_region(rows, group=self._tensor_group)
        angles = packed.angles(shape.rope_dim, shape.rope_theta)
        rotated = rotate_pairs(rows[:, None, shape.latent_rank :], *angles).squeeze(1)
        return self.all_rows(torch.cat((rows[:, : shape.latent_rank], rotated), dim=-1), packed)

    def all_rows(self, own: Tensor, packed: PackedBatch) -> Tensor:
        """[T, ...] of this context-parallel rank -> [K, ...] of all, in the order of the packed row."""
        if packed.order is None:
            return own
        gathered: Tensor = gather_from_sequence_parallel_region(own, group=self._context_group)
        return gathered.index_select(0, packed.order)

    def ids(self, inputs: Tensor, latent: Tensor, packed: PackedBatch) -> Tensor:
        """[T, k]: those of the source layer, chosen here if this is the source and it has none yet."""
        source, layer = self.place.source, self.place.layer
        shared = packed.shared_ids[self.place.part]
        ids = shared.get(source)
        if ids is None:
            assert self.indexer is not None, f"layer {layer} shares ids that nobody has chosen"
            given = packed.given_ids.get(layer)
            ids = self.choose(inputs, latent, packed) if given is None else given
            shared.put(source, ids)
        shared.used(source, layer, comes_again=self._comes_again())
        return ids

    def _comes_again(self) -> bool:
        full = self.config.recompute_granularity == "full"
        return full and self.training and not torch.is_grad_enabled()

    @torch.no_grad()
    def choose(self, inputs: Tensor, latent: Tensor, packed: PackedBatch) -> Tensor:
        """[T, top_k] int32 rows for every query of this rank, by the layer's own indexer.

        With sequence parallelism each tensor-parallel rank chooses for its own tokens.
        """
        assert self.indexer is not None
        angles, first, last = self.own_angles(packed), *self.own_ranges(packed)
        keys = self.indexer.keys(inputs, angles)
        if self.config.sequence_parallel:
            keys = gather_from_sequence_parallel_region(keys, group=self._tensor_group)
        keys = self.all_rows(keys, packed)
        if packed.path_keys is not None:
            keys = keys.index_select(0, packed.path_keys)
        try:
            ids: Tensor = select_keys(
                self.indexer.queries(latent, angles),
                self.indexer.weights(inputs),
                keys,
                first_rows=first,
                last_rows=last,
                top_k=self.shape.index_top_k,
            )
        except RunError as error:
            raise RunError(f"layer {self.place.layer}: {error}") from error
        if packed.path_keys is not None:
            ids = torch.where(ids < 0, ids, packed.path_keys.int()[ids.clamp(min=0)])
        if self.config.sequence_parallel:
            ids = gather_from_sequence_parallel_region(ids, group=self._tensor_group)
        return ids

    def own_angles(self, packed: PackedBatch) -> tuple[Tensor, Tensor]:
        """Of the t positions whose hidden states this rank has."""
        cos, sin = packed.angles(self.shape.rope_dim, self.shape.rope_theta)
        return self._own(cos), self._own(sin)

    def own_ranges(self, packed: PackedBatch) -> tuple[Tensor, Tensor]:
        """[t], [t]: the first and last row that each of this rank's tokens may attend to; of the paths' rows
        where prefixes are shared."""
        first, last = packed.key_range
        return self._own(first), self._own(last)

    def _own(self, x: Tensor) -> Tensor:
        if not self.config.sequence_parallel:
            return x
        size: int = self.config.tensor_model_parallel_size
        rank: int = parallel_state.get_tensor_model_parallel_rank()
        return torch.chunk(x, size)[rank]

    def expands(self, packed: PackedBatch) -> bool:
        """Whether this batch takes the expanded form: every layer of the model decides the same."""
        if self.place.form != "auto":
            return self.place.form == "expanded"
        return takes_all(self.shape, packed)

    def absorb(self, queries: Tensor) -> Tensor:
        """[T, heads, nope + rope] -> [T, heads, latent + rope]."""
        nope = self.shape.nope_dim
        absorbed = torch.einsum("thn,hnl->thl", queries[..., :nope], self._halves()[0])
        return torch.cat((absorbed, queries[..., nope:]), dim=-1)

    def release(self, taken: Tensor) -> Tensor:
        """[T, heads, latent] -> [T, heads, value_dim]."""
        return torch.einsum("thl,hvl->thv", taken, self._halves()[1])

    def attend(self, queries: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """Absorbed queries over their rows -> [T, heads, latent]."""

        def core(queries: Tensor, rows: Tensor) -> Tensor:
            return sparse_attention(
                queries, rows, ids, scale=self.scale, value_dim=self.shape.latent_rank
            )

        return self._maybe_again(core, queries, rows)

    def attend_all(self, queries: Tensor, rows: Tensor, packed: PackedBatch) -> Tensor:
        """Absorbed queries over every row in range -> [T, heads, latent]."""
        last = packed.rows

        def core(queries: Tensor, rows: Tensor) -> Tensor:
            return dense_attention(
                queries,
                rows,
                first_rows=last - packed.positions,
                last_rows=last,
                scale=self.scale,
                value_dim=self.shape.latent_rank,
            )

        return self._maybe_again(core, queries, rows)

    def _maybe_again(self, core: Callable[..., Tensor], queries: Tensor, rows: Tensor) -> Tensor:
        if self.recomputes_core and self.training:
            return tensor_parallel.checkpoint(core, False, queries, rows)  # type: ignore[no-any-return]
        return core(queries, rows)

    def attend_expanded(self, queries: Tensor, rows: Tensor, packed: PackedBatch) -> Tensor:
        """Dense causal attention -> [T, heads, value_dim]."""
        latent, key = rows[:, : self.shape.latent_rank], rows[:, self.shape.latent_rank :]
        to_keys, to_values = self._halves()
        kept = torch.einsum("kl,hnl->khn", latent, to_keys)
        keys = torch.cat((kept, key.unsqueeze(1).expand(-1, self.heads, -1)), dim=-1)
        values = torch.einsum("kl,hvl->khv", latent, to_values)
        return causal_attention(queries, keys, values, packed, scale=self.scale)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """kv_b_proj of this rank's heads: to keys [heads, nope, latent], to values [heads, value, latent]."""
        by_head = self.linear_kv_up_proj.weight.view(self.heads, -1, self.shape.latent_rank)
        return by_head[:, : self.shape.nope_dim], by_head[:, self.shape.nope_dim :]

    def _record(
        self, inputs: Tensor, latent: Tensor, queries: Tensor, rows: Tensor, ids: Tensor | None
    ) -> AttentionRecord:
        return AttentionRecord(
            layer=self.place.layer,
            source=self.place.source,
            inputs=inputs.detach(),
            query_latent=latent.detach(),
            queries=queries.detach(),
            rows=rows.detach(),
            ids=ids,
            scale=self.scale,
        )


def takes_all(shape: GlmShape, packed: PackedBatch) -> bool:
    """Every query of the batch attends to all that came before: nothing needs to be chosen."""
    fits = packed.max_length <= shape.index_top_k
    return fits and packed.context.size == 1 and not packed.given_ids
