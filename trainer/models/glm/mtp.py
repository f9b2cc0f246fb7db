"""GLM-5's multi-token prediction (MTP): one layer, run K times, that drafts K tokens for speculative decoding.

    u^k_i = eh_proj [ enorm(Emb x_{i+k}) ; hnorm(h^{k-1}_i) ],   h^0 = the target's, after model.norm
    h^k_i = shared_head.norm(layer(u^k_i)),   lm_head(h^k_i) predicts x_{i+k+1}

Teacher-forced on packed rows. What step k > 1 attends to, over positions j <= i:

    own rows (GLM-5.1)      rows, index keys and ids of the same step, from u^k_j
    shared rows (GLM-5.2)   rows and ids of step 1; only the query path runs on u^k, at rotary position
                            i + k - 1, which is where serving has it (IndexShare and KVShare)

Serving drafts on rows made from the target's hidden states, which the shared form trains on and the other
does not. `trainer.models.glm.cached_decoding` is the serving form; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlframe.config.schema import MtpConfig
from rlframe.model_shapes.glm import GlmShape
from trainer.models.glm.attention import AttentionRecord, LatentAttention
from trainer.models.layers import ReplicatedLinear, RMSNorm
from trainer.models.packed import MtpStates, PackedBatch, pair_angles

Embed = Callable[[Tensor], Tensor]
"""Token ids [T] of a packed row -> embeddings [t, 1, hidden]; t = T / tensor with sequence parallelism."""


@dataclass(slots=True)
class _Step:
    """What one step's attention reads; `ids` are kept for the replay under recomputation."""

    number: int  # 1-based
    rows: Tensor | None = None  # [T, latent + rope]; None: the step makes its own
    ids: Tensor | None = None  # [T, k]


class MtpLayer(MegatronModule):  # type: ignore[misc]
    """Lives on the last pipeline stage; `layer_spec` is the decoder layer's, which owns an indexer."""

    def __init__(
        self,
        config: TransformerConfig,
        shape: GlmShape,
        *,
        options: MtpConfig,
        layer_spec: ModuleSpec,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.shape, self.options = shape, options
        hidden, eps = shape.hidden_size, shape.norm_eps
        self.enorm = RMSNorm(config, hidden, eps)
        self.hnorm = RMSNorm(config, hidden, eps)
        self.eh_proj = ReplicatedLinear(config, 2 * hidden, hidden)
        self.layer = build_module(layer_spec, config=config, pg_collection=pg_collection)
        self.final_layernorm = RMSNorm(config, hidden, eps)
        self._tensor_group = pg_collection.tp

    def forward(self, hidden: Tensor, packed: PackedBatch, embed: Embed) -> MtpStates:
        """`hidden` [t, 1, hidden] after model.norm -> the drafts' hidden states at every position.

        Those whose labels leave the document mean nothing (`trainer.losses.draft_scores`).
        """
        shared: _Step | None = None
        target, drafts = hidden, []
        for number in range(1, self.options.steps + 1):
            step = _Step(number)
            if shared is not None and self.shape.mtp_index_share:
                step.rows, step.ids = shared.rows, shared.ids
            # What comes round from the row's start belongs to no document that counts.
            embedded = embed(packed.token_ids.roll(-number))
            hidden, rows = self._run(embedded, hidden, packed, step)
            drafts.append(self._gathered(hidden))
            if shared is None:
                shared = _Step(1, rows.detach() if self.options.detach_rows else rows, step.ids)
        return MtpStates(torch.stack(drafts), self._gathered(target.detach()))

    def _run(
        self, embedded: Tensor, hidden: Tensor, packed: PackedBatch, step: _Step
    ) -> tuple[Tensor, Tensor]:
        """h^k [t, 1, hidden] and the rows that it read."""
        given = step.rows

        def one_step(embedded: Tensor, hidden: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
            x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1))
            attended, rows = self._attend(self.layer.input_layernorm(x), packed, step, rows)
            x = x + attended
            fed, _bias = self.layer.mlp(self.layer.pre_mlp_layernorm(x))
            return self.final_layernorm(x + fed), rows

        if self.config.recompute_granularity == "full" and torch.is_grad_enabled():
            hidden, rows = checkpoint(
                one_step, embedded, hidden, given, use_reentrant=False, preserve_rng_state=False
            )
        else:
            hidden, rows = one_step(embedded, hidden, given)
        return hidden, rows

    def _attend(
        self, normed: Tensor, packed: PackedBatch, step: _Step, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        attention: LatentAttention = self.layer.self_attention
        inputs = normed.squeeze(1)
        latent = attention.query_latent(inputs)
        queries = attention.absorb(attention.queries(latent, self._angles(packed, step)))
        if rows is None:
            rows = attention.rows(inputs, packed)
        chooses = not (self.shape.mtp_index_share and step.number > 1)
        if step.ids is None:
            step.ids = attention.choose(inputs, latent, packed)
        taken = attention.attend(queries, rows, step.ids)
        if attention.observer is not None and chooses:
            # A number for each step, as each is a source of its own to whoever trains the indexer.
            number = attention.place.layer + step.number - 1
            record = AttentionRecord(
                layer=number,
                source=number,
                inputs=inputs.detach(),
                query_latent=latent.detach(),
                queries=queries.detach(),
                rows=rows.detach(),
                ids=step.ids,
                scale=attention.scale,
            )
            taken = attention.observer(attention, record, packed, taken)
        projected, _bias = attention.linear_proj(attention.release(taken).flatten(1).unsqueeze(1))
        return projected, rows

    def _angles(self, packed: PackedBatch, step: _Step) -> tuple[Tensor, Tensor]:
        """Of the queries; where each step has its own rows, queries and rows move together."""
        shape = self.shape
        shifted = shape.mtp_index_share and self.options.query_positions == "served"
        shift = step.number - 1 if shifted else 0
        return pair_angles(packed.positions + shift, shape.rope_dim, shape.rope_theta)

    def _gathered(self, hidden: Tensor) -> Tensor:
        """[t, 1, hidden] -> [T, hidden]."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(
                hidden, tensor_parallel_output_grad=False, group=self._tensor_group
            )
        return hidden.squeeze(1)
