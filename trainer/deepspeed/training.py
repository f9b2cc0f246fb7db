"""One rank's model in training by DeepSpeed: `trainer.ranks.training.RankTraining`.

It knows torch, transformers and DeepSpeed, but not Ray. Ranks are data parallel: each has rows of its own and
answers for itself, and all of them make the same passes through the model (ZeRO 3 gathers parameters in each).
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rlframe.types import Float32Array, WeightManifest
from trainer.deepspeed import checkpoint
from trainer.deepspeed.engine import Engine, world_size
from trainer.deepspeed.exported import described, exported
from trainer.deepspeed.model import build, freeze_attention, packs_rows
from trainer.deepspeed.optimizer import MOMENTS, set_learning_rate
from trainer.deepspeed.passes import Pass, idle_pass, passes_of
from trainer.frozen_copy import FrozenCopy
from trainer.loss_functions import Losses
from trainer.ranks.role_file import RoleFile
from trainer.ranks.shard import RowShard
from trainer.ranks.spec import RankInfo, RankSpec
from trainer.shared_tensors import TensorSharer
from trainer.weights import WeightPublisher, write_checkpoint


class Training:
    """Built after `join_ranks`, on every rank of the role."""

    def __init__(self, spec: RankSpec, device: torch.device) -> None:
        self.spec, self._device = spec, device
        model = build(spec)
        if spec.freezes_attention:
            freeze_attention(model)
        self._packed = packs_rows(model.model)
        self.exported, self._config = exported(model), described(model, spec.model)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        self.engine = Engine(model.to(device), spec)
        moments = MOMENTS[spec.config.optimizer.get("optimizer", "adam")]
        self.state = checkpoint.TrainedState(self.engine, shapes, moments)
        self._reference: FrozenCopy | None = None
        if spec.keeps_reference and spec.role == "policy":
            with self.engine.partitioned():
                self._reference = FrozenCopy(self.engine.local_tensors())
        self._losses = Losses(spec.objective)
        self._publisher = WeightPublisher(self.exported)
        self._sharer: TensorSharer | None = None

    def info(self) -> RankInfo:
        return RankInfo(
            rank=self.spec.rank,
            data_rank=self.spec.rank,
            tensor_rank=0,
            pipeline_rank=0,
            answers=True,
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def logprobs(self, shard: RowShard) -> Float32Array:
        return self._read(shard, self._losses.read_logprobs)

    def reference_logprobs(self, shard: RowShard) -> Float32Array:
        assert self._reference is not None, "RankSpec.keeps_reference"
        with self.engine.partitioned():
            self._reference.swap()
        try:
            return self.logprobs(shard)
        finally:
            with self.engine.partitioned():
                self._reference.swap()

    def values(self, shard: RowShard) -> Float32Array:
        return self._read(shard, self._losses.read_values)

    def update(self, shard: RowShard, *, step: int, actions: int) -> dict[str, float]:
        self.engine.inner.train()
        loss_function = self._losses.bind(actions)
        statistics = []
        for each in self._passes(shard):
            loss, measured = loss_function(self._forward(each), each)
            statistics.append({"loss": loss.detach(), **measured})
            # DeepSpeed averages over ranks; the loss is divided by the actions of all of them already.
            self.engine.inner.backward(loss * world_size())
        means = self._sum(statistics, actions)
        lr = set_learning_rate(
            self.engine.optimizer, self.spec.config, step=step, total_steps=self.spec.total_steps
        )
        outcome = self.engine.guard.take(
            self.engine.inner.step, finite=math.isfinite(means["loss"])
        )
        skipped = float(not outcome.stepped)
        return {**means, "grad_norm": outcome.grad_norm, "lr": lr, "skipped": skipped}

    def save(self, directory: str, step: int) -> None:
        checkpoint.save(self.state, directory, self._role_file(step))

    def load(self, directory: str) -> int:
        return checkpoint.load(self.state, directory, self._role_file(step=0))

    def export(self, version: int, directory: str) -> WeightManifest | None:
        return self._publisher.publish(version, directory)

    def share(self, version: int) -> WeightManifest | None:
        if self._sharer is None:
            self._sharer = TensorSharer(self.exported)
        return self._sharer.share(version)

    def export_hf(self, directory: str) -> None:
        write_checkpoint(self.exported, self._config, directory)

    def close(self) -> None:
        self.engine.close()
        dist.destroy_process_group()

    @torch.no_grad()
    def _read(self, shard: RowShard, readout: Callable[[Tensor, Pass], Tensor]) -> Float32Array:
        """One number a token, where it was asked for."""
        self.engine.inner.eval()
        column = np.zeros(len(shard.columns["token_ids"]), np.float32)
        for each in self._passes(shard):
            read = readout(self._forward(each), each)
            column[each.asked] = read.float().cpu().numpy()[: len(each.asked)]
        return column

    def _passes(self, shard: RowShard) -> list[Pass]:
        """As many on every rank. Collective."""
        passes = passes_of(shard, packed=self._packed, device=self._device)
        most = torch.tensor(len(passes), device=self._device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        missing = max(int(most), 1) - len(passes)
        return passes + [idle_pass(shard, self._device)] * missing

    def _forward(self, each: Pass) -> Tensor:
        output: Tensor = self.engine.inner(each.input_ids, each.position_ids, each.positions)
        return output

    def _sum(self, statistics: list[dict[str, Tensor]], actions: int) -> dict[str, float]:
        """Over passes and ranks; all but the loss as means over actions."""
        names = list(statistics[0])
        table = torch.stack([torch.stack([s[n].double() for n in names]) for s in statistics])
        total = table.sum(dim=0)
        dist.all_reduce(total)
        sums = dict(zip(names, total.tolist(), strict=True))
        return {name: s if name == "loss" else s / actions for name, s in sums.items()}

    def _role_file(self, step: int) -> RoleFile:
        spec = self.spec
        return RoleFile(
            spec.role, step, spec.layout, dict(spec.model.hf_config), backend="deepspeed"
        )
