"""The losses of `trainer.losses`, bound to one rank's model and its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from torch import Tensor

from rlframe.config.schema import MtpConfig
from trainer.losses.logprobs import token_logprobs
from trainer.losses.policy import PolicyInputs, policy_loss
from trainer.losses.sft import sft_loss
from trainer.losses.value import value_loss
from trainer.megatron.micro_batch import MicroBatch
from trainer.megatron.mtp_loss import MtpLosses
from trainer.megatron.passes import LossFunction
from trainer.models.language_model import model_chunks
from trainer.objective import Objective, PolicyObjective, SftObjective, ValueObjective


class Losses:
    """From a model's outputs at the P asked-for positions to logprobs, values and losses.

    A policy's outputs are logits [P, vocabulary columns of this rank], a critic's are values [P].
    """

    def __init__(
        self, model: torch.nn.Module, objective: Objective, mtp: MtpConfig | None = None
    ) -> None:
        self._objective = objective
        self._first_column = model_chunks(model)[0].vocab_range[0]
        self._temperature = objective.temperature if isinstance(objective, PolicyObjective) else 1.0
        self._mtp: MtpLosses | None = None
        if mtp is not None and mtp.mode != "off":
            self._mtp = MtpLosses(model_chunks(model)[-1], mtp, temperature=self._temperature)

    def read_logprobs(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        return self._logprobs(logits, batch, with_entropy=False)[0]

    def read_values(self, values: Tensor, batch: MicroBatch) -> Tensor:
        return values

    def bind(self, actions: int, batches: Sequence[MicroBatch]) -> LossFunction:
        """The loss of this model's objective, divided by the actions of the whole mini-batch.

        Where MTP trains, its loss is added; `loss` among the statistics is the objective's alone. Collective
        then: `batches` are this rank's micro-batches, whose positions are counted over all ranks.
        """
        objective_loss = self._bind_objective(actions)
        if self._mtp is None:
            return objective_loss
        mtp, count = self._mtp, self._mtp.count(batches)

        def with_mtp(output: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            loss, statistics = objective_loss(output, batch)
            added, drafting = mtp.loss(batch, count=count)
            return loss + added, {**statistics, "loss": loss.detach(), **drafting}

        return with_mtp

    def _bind_objective(self, actions: int) -> LossFunction:
        def loss_function(output: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            match self._objective:
                case PolicyObjective() as objective:
                    return self._policy(objective, output, batch, actions)
                case ValueObjective(value_clip=value_clip):
                    return value_loss(
                        output,
                        batch.fields["old_values"],
                        batch.fields["returns"],
                        batch.mask,
                        value_clip=value_clip,
                        denominator=actions,
                    )
                case SftObjective():
                    return sft_loss(
                        self.read_logprobs(output, batch), batch.mask, denominator=actions
                    )

        return loss_function

    def _policy(
        self, objective: PolicyObjective, logits: Tensor, batch: MicroBatch, actions: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, entropy = self._logprobs(logits, batch, with_entropy=True)
        fields = batch.fields
        inputs = PolicyInputs(
            logprobs=logprobs,
            old_logprobs=fields["old_logprobs"],
            rollout_logprobs=fields["rollout_logprobs"],
            advantages=fields["advantages"],
            mask=batch.mask,
            entropy=entropy,
            weights=fields.get("loss_weights"),
            ref_logprobs=fields.get("ref_logprobs"),
            traces=batch.traces,
        )
        return policy_loss(inputs, objective, denominator=actions)

    def _logprobs(
        self, logits: Tensor, batch: MicroBatch, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        return token_logprobs(
            logits,
            batch.targets,
            temperature=self._temperature,
            first_column=self._first_column,
            group=parallel_state.get_tensor_model_parallel_group(),
            with_entropy=with_entropy,
        )
