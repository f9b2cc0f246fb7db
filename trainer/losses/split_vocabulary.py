"""A vocabulary whose columns may be split over ranks: sums over all of them, and log softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Split:
    """Which token ids a rank's columns are (`first` and those after it), and who has the others."""

    first: int = 0
    group: dist.ProcessGroup | None = None

    def reduce(self, values: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """In place, over the ranks that share the vocabulary."""
        if self.group is not None and dist.get_world_size(self.group) > 1:
            dist.all_reduce(values, op=op, group=self.group)
        return values


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature; float32 at least."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return z if temperature == 1.0 else z / temperature


def log_normaliser(z: Tensor, split: Split) -> Tensor:
    """[n, W] -> [n] log sum exp over all ranks' columns; a rank may have none."""
    own = z.amax(-1) if z.shape[1] else z.new_full((len(z),), -torch.inf)
    maximum = split.reduce(own, dist.ReduceOp.MAX)
    return maximum + split.reduce((z - maximum[:, None]).exp().sum(-1)).log()


def log_softmax(logits: Tensor, temperature: float, split: Split) -> Tensor:
    """[n, W], normalised over all ranks' columns; float32 at least."""
    z = scaled(logits, temperature)
    return z - log_normaliser(z, split)[:, None]
