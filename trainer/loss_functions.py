"""The losses of `trainer.losses`, bound to a role's objective: from a model's outputs to a loss and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch.distributed as dist
from torch import Tensor

from trainer.distillation_loss import DistillationLosses, TeacherStates
from trainer.losses.logprobs import token_logprobs
from trainer.losses.policy import PolicyInputs, policy_loss
from trainer.losses.sft import sft_loss
from trainer.losses.value import distributional_value_loss, value_loss
from trainer.losses.value_bins import expected_value
from trainer.objective import Objective, PolicyObjective, SftObjective, ValueObjective


class Asked(Protocol):
    """What is known of the P asked-for tokens of a micro-batch."""

    @property
    def targets(self) -> Tensor: ...  # [P] int64, their ids

    @property
    def mask(
        self,
    ) -> Tensor: ...  # [P] bool; false where a position only fills an empty micro-batch

    @property
    def fields(self) -> dict[str, Tensor]: ...  # each [P], by `TrainRow`'s names

    @property
    def traces(self) -> Tensor: ...  # [P] int64, which of the micro-batch's rows each is of


LossFunction: TypeAlias = Callable[[Tensor, Asked], tuple[Tensor, dict[str, Tensor]]]
"""(logits [P, V], values [P] or their logits [P, K]; what was asked) -> summed loss [], and sums of statistics []."""


class Losses:
    """From a model's outputs at the P asked-for positions to logprobs, values and losses.

    A policy's outputs are logits [P, vocabulary columns of this rank], a critic's are values [P], or logits
    [P, K] over K bins of values.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        first_column: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`group`: the tensor-parallel ranks that hold the logits' columns; `first_column`: this one's first."""
        self._objective = objective
        self._first_column, self._group = first_column, group
        self.temperature = objective.temperature if isinstance(objective, PolicyObjective) else 1.0
        self._distillation: DistillationLosses | None = None
        if isinstance(objective, PolicyObjective) and objective.distillation is not None:
            self._distillation = DistillationLosses(
                objective.distillation, first_column=first_column, group=group
            )

    def read_logprobs(self, logits: Tensor, batch: Asked) -> Tensor:
        return self._logprobs(logits, batch, with_entropy=False)[0]

    def read_teacher_logprobs(self, logits: Tensor, batch: Asked) -> Tensor:
        """A teacher speaks at temperature 1, whatever the policy samples at."""
        return self._logprobs(logits, batch, with_entropy=False, temperature=1.0)[0]

    def read_values(self, output: Tensor, batch: Asked) -> Tensor:
        objective = self._objective
        bins = objective.bins if isinstance(objective, ValueObjective) else None
        return output if bins is None else expected_value(bins, output)

    def bind(self, actions: int) -> LossFunction:
        """The loss of the objective, divided by the actions of the whole mini-batch."""

        def loss_function(output: Tensor, batch: Asked) -> tuple[Tensor, dict[str, Tensor]]:
            match self._objective:
                case PolicyObjective() as objective:
                    return self._policy(objective, output, batch, actions)
                case ValueObjective() as objective:
                    return _value(objective, output, batch, actions)
                case SftObjective():
                    return sft_loss(
                        self.read_logprobs(output, batch), batch.mask, denominator=actions
                    )

        return loss_function

    def _policy(
        self, objective: PolicyObjective, logits: Tensor, batch: Asked, actions: int
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
        loss, statistics = policy_loss(inputs, objective, denominator=actions)
        if self._distillation is None:
            return loss, statistics
        # Only a backend that holds teachers gives a micro-batch their states.
        states: TeacherStates | None = getattr(batch, "teacher", None)
        added, measured = self._distillation.loss(
            logits, fields, batch.mask, states, denominator=actions
        )
        return loss + added, {**statistics, **measured}

    def _logprobs(
        self,
        logits: Tensor,
        batch: Asked,
        *,
        with_entropy: bool,
        temperature: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return token_logprobs(
            logits,
            batch.targets,
            temperature=self.temperature if temperature is None else temperature,
            first_column=self._first_column,
            group=self._group,
            with_entropy=with_entropy,
        )


def _value(
    objective: ValueObjective, output: Tensor, batch: Asked, actions: int
) -> tuple[Tensor, dict[str, Tensor]]:
    returns = batch.fields["returns"]
    if objective.bins is not None:
        return distributional_value_loss(
            output, returns, batch.mask, bins=objective.bins, denominator=actions
        )
    return value_loss(
        output,
        batch.fields["old_values"],
        returns,
        batch.mask,
        value_clip=objective.value_clip,
        denominator=actions,
    )
