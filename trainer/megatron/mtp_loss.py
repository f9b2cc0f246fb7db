"""The MTP loss of `trainer.losses.mtp`, bound to one rank's model and its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from rlframe.config.schema import MtpConfig
from trainer.losses.draft_scores import complete_positions, draft_scores
from trainer.losses.mtp import cross_entropy, mtp_loss
from trainer.megatron.micro_batch import MicroBatch
from trainer.megatron.passes import LossFunction
from trainer.models.language_model import LanguageModel


class MtpLosses:
    """Positions that count, and their loss over the positions of the whole mini-batch."""

    def __init__(self, model: LanguageModel, options: MtpConfig, *, temperature: float) -> None:
        self._model, self._options, self._temperature = model, options, temperature

    def count(self, batches: Sequence[MicroBatch]) -> int:
        """Positions in all micro-batches of all data-parallel ranks; at least 1. Collective."""
        own = sum(len(self.positions(batch)) for batch in batches)
        total = torch.tensor(own, device=batches[0].targets.device)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return max(int(total), 1)

    def positions(self, batch: MicroBatch) -> Tensor:
        """[N]: those whose K labels are in one document, and all actions if only actions count."""
        packed, steps = batch.packed, self._options.steps
        tokens = len(packed.token_ids)
        found = complete_positions(packed.cu_seqlens, steps=steps, total=tokens)
        counts = torch.zeros(tokens, dtype=torch.bool, device=found.device)
        if self._options.positions == "all":
            counts[: packed.num_tokens] = True
        else:
            counts[torch.from_numpy(batch.asked).to(found.device)] = True
        labels = found[:, None] + torch.arange(2, steps + 2, device=found.device)
        return found[counts[labels].all(dim=1)]

    def loss(self, batch: MicroBatch, *, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss [] to be added to the objective's, and statistics: means over `count` positions."""
        options, packed = self._options, batch.packed
        states, packed.mtp = packed.mtp, None
        assert states is not None, "the forward pass drafts on the last stage, in training mode"
        trains_head = options.mode == "joint"
        scores = draft_scores(
            states.drafts,
            states.targets,
            packed.token_ids,
            self.positions(batch),
            head=lambda h: self._model.logits(h.unsqueeze(1), trains_head=trains_head),
            temperature=self._temperature,
            first_column=self._model.vocab_range[0],
            group=parallel_state.get_tensor_model_parallel_group(),
        )
        loss, statistics = mtp_loss(scores, options.loss, denominator=count)
        if options.ce_weight:
            loss = loss + options.ce_weight * cross_entropy(scores).sum() / count
        return options.weight * loss, {f"mtp_{name}": s for name, s in statistics.items()}

    def beside(self, objective: LossFunction, batches: Sequence[MicroBatch]) -> LossFunction:
        """The objective's loss with this one added; `loss` among the statistics is the objective's alone.

        Collective: `batches` are this rank's micro-batches, whose positions are counted over all ranks.
        """
        count = self.count(batches)

        def both(output: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            loss, statistics = objective(output, batch)
            added, drafting = self.loss(batch, count=count)
            return loss + added, {**statistics, "loss": loss.detach(), **drafting}

        return both
