"""Forward and forward-backward passes of one rank over its micro-batches.

Megatron's own schedules do the work: 1F1B over pipeline stages, interleaved where those have several
parts, or one micro-batch after the other.
Every rank of a role makes the same calls with the same number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from rlframe.model_shapes.pipeline import Chunk
from trainer.megatron.micro_batch import MicroBatch
from trainer.models import packed as packed_model
from trainer.models.language_model import model_chunks

Wrapped = Sequence[torch.nn.Module]
"""The chunks of this rank's pipeline stage: one, several with virtual pipelining."""
Readout = Callable[[Tensor, MicroBatch], Tensor]
"""(logits [P, V] or values [P], micro-batch) -> one number a position [P]."""
LossFunction = Callable[[Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
"""(logits [P, V] or values [P], micro-batch) -> summed loss [], and sums of statistics []."""


@torch.no_grad()
def forward_only(model: Wrapped, batches: Sequence[MicroBatch], readout: Readout) -> list[Tensor]:
    """[P] a micro-batch on the last pipeline stage; nothing on the others."""

    def step(iterator: Iterator[MicroBatch], module: torch.nn.Module) -> tuple[Tensor, None]:
        batch = next(iterator)
        output = packed_model.forward(module, batch.packed)
        return (readout(output, batch) if _ends_the_model(module) else output), None

    outputs: list[Tensor] = _run(step, model, batches, forward_only=True)
    return outputs


def forward_backward(
    model: Wrapped, batches: Sequence[MicroBatch], loss_function: LossFunction
) -> list[dict[str, Tensor]]:
    """Adds this rank's gradients and reduces them over ranks; returns statistics a micro-batch.

    The statistics have the loss as `loss`; on pipeline stages other than the last there are none.
    """

    def step(iterator: Iterator[MicroBatch], module: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(iterator)
        output = packed_model.forward(module, batch.packed)
        return output, lambda result: _loss_and_statistics(loss_function, result, batch)

    statistics: list[dict[str, Tensor]] = _run(step, model, batches, forward_only=False)
    return statistics


def _loss_and_statistics(
    loss_function: LossFunction, output: Tensor, batch: MicroBatch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """In Megatron's terms: loss, number of tokens to divide by later (unused), what to report."""
    loss, statistics = loss_function(output, batch)
    reported = {"loss": loss.detach(), **statistics}
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), reported


def _run(
    step: Callable[..., Any],
    model: Wrapped,
    batches: Sequence[MicroBatch],
    *,
    forward_only: bool,
) -> list[Any]:
    run = get_forward_backward_func()
    results: list[Any] = run(
        forward_step_func=step,
        data_iterator=[iter(batches) for _ in model],
        model=list(model),
        num_microbatches=len(batches),
        seq_length=max(len(b.packed.token_ids) for b in batches),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return results


def _ends_the_model(module: torch.nn.Module) -> bool:
    chunk: Chunk = model_chunks(module)[0].chunk
    return chunk.is_last
