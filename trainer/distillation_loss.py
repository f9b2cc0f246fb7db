"""The distillation loss of `trainer.losses`, bound to what a micro-batch knows of its teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.losses.distillation import distillation_loss
from trainer.losses.divergences import Divergence, candidate_divergence, full_divergence
from trainer.objective import DistillationObjective


@dataclass(frozen=True, slots=True, eq=False)
class TeacherStates:
    """Last hidden states of the teacher of each asked-for token; logits are made from them, some at a time."""

    hidden: Tensor  # [P, hidden], after the teacher's last norm
    teachers: Tensor  # [P] int64, whose they are
    heads: Mapping[int, Tensor]
    """By teacher: its output layer [W, hidden], on the CPU or on the model's device."""

    def logits(self, part: slice) -> Tensor:
        """[n, W] of these positions."""
        hidden, teachers = self.hidden[part], self.teachers[part]
        found: Tensor | None = None
        for index, head in self.heads.items():
            mine = teachers == index
            if not mine.any():
                continue
            own = hidden[mine] @ head.to(hidden.device).t()
            if found is None:
                found = own.new_empty(len(hidden), own.shape[1])
            found[mine] = own
        assert found is not None, "every position has a teacher"
        return found


class DistillationLosses:
    """From the student's logits [P, vocabulary columns of this rank] to the divergence from its teachers."""

    def __init__(
        self,
        objective: DistillationObjective,
        *,
        first_column: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._objective, self._first_column, self._group = objective, first_column, group
        self._divergence = Divergence(
            objective.divergence, beta=objective.beta, temperature=objective.temperature
        )

    def loss(
        self,
        logits: Tensor,
        fields: Mapping[str, Tensor],
        mask: Tensor,
        states: TeacherStates | None,
        *,
        denominator: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """To be added to the policy's loss; 0 for a micro-batch without actions. `fields` are [P] or [P, k]."""
        if not mask.any():
            zero = torch.zeros((), device=logits.device)
            return zero, {"teacher_divergence": zero}
        weights = fields.get("teacher_weights")
        if "loss_weights" in fields:
            own = fields["loss_weights"]
            weights = own if weights is None else weights * own
        return distillation_loss(
            self._divergences(logits, fields, states),
            mask,
            weights,
            coef=self._objective.coef,
            denominator=denominator,
        )

    def _divergences(
        self, logits: Tensor, fields: Mapping[str, Tensor], states: TeacherStates | None
    ) -> Tensor:
        if states is not None:
            return full_divergence(
                logits,
                states.logits,
                self._divergence,
                first_column=self._first_column,
                group=self._group,
            )
        return candidate_divergence(
            logits,
            fields["teacher_top_ids"].long(),
            fields["teacher_top_logprobs"],
            self._divergence,
            tail=self._objective.tail,
            first_column=self._first_column,
            group=self._group,
        )
