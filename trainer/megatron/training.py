"""One rank's model in training: passes, optimizer steps, checkpoints. Everything here is collective.

`Training` is what a rank actor holds; it knows torch and Megatron, but not Ray. All ranks of a role
make the same calls in the same order; only the rank that `answers` for its data-parallel rank gets
results.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from rlframe.types import Float32Array, WeightManifest
from trainer.frozen_copy import FrozenCopy
from trainer.loss_functions import Losses
from trainer.megatron import checkpoint
from trainer.megatron.indexer_learning import IndexerLearning
from trainer.megatron.micro_batch import MicroBatch, micro_batches
from trainer.megatron.mtp_loss import MtpLosses
from trainer.megatron.optimizer import guarded_step, make_optimizer, set_learning_rate, wrap_model
from trainer.megatron.parallel import destroy_parallel, init_parallel
from trainer.megatron.passes import LossFunction, Readout, forward_backward, forward_only
from trainer.megatron.teacher_passes import TeacherPasses
from trainer.megatron.teacher_weights import TeacherWeights
from trainer.models.build import build_chunks
from trainer.models.context import ContextRank
from trainer.models.exported import exported, write_checkpoint
from trainer.models.language_model import model_chunks
from trainer.models.transformer import DTYPES
from trainer.ranks.role_file import RoleFile
from trainer.ranks.shard import RowShard
from trainer.ranks.spec import RankInfo, RankSpec
from trainer.shared_tensors import TensorSharer
from trainer.weights import WeightPublisher

ATTENTION = ".self_attention."
MTP = "mtp_"
"""Statistics of this name are means already: over the positions that train MTP, not over actions."""


class Training:
    """Built after `init_parallel`, on every rank of the role."""

    def __init__(self, spec: RankSpec, device: torch.device | str) -> None:
        self.spec = spec
        self._device = torch.device(device)
        layout = spec.config.layout
        self.model = build_chunks(
            hf_config=spec.model.hf_config,
            layout=layout,
            transformer=spec.config.transformer,
            role=spec.role,
            dtype=spec.model.dtype,
            device=self._device,
            seed=spec.model.seed,
            path=spec.model.path,
            mtp=spec.mtp,
            indexer=spec.indexer,
        )
        if spec.freezes_attention:
            freeze_attention(self.model)
        self._indexers = IndexerLearning(self.model, spec.indexer, self._device)
        self._reference = (
            FrozenCopy([*self.model.parameters(), *self.model.buffers()])
            if spec.keeps_reference and spec.role == "policy"
            else None
        )
        self._teachers: TeacherPasses | None = None
        if spec.teachers and spec.role == "policy":
            self._teachers = TeacherPasses(
                self.model,
                TeacherWeights(self.model, spec.teachers, seed=spec.model.seed),
                self._micro_batches,
                whole=layout.context > 1,
                keeps=spec.keeps_teacher_states,
            )
        chunk = model_chunks(self.model)[-1]
        self._losses = Losses(
            spec.objective,
            first_column=chunk.vocab_range[0],
            group=parallel_state.get_tensor_model_parallel_group(),
        )
        self._mtp: MtpLosses | None = None
        if spec.mtp.mode != "off":
            self._mtp = MtpLosses(chunk, spec.mtp, temperature=self._losses.temperature)
        self._publisher = WeightPublisher(exported(self.model))
        self._sharer: TensorSharer | None = None
        self._wrapped = wrap_model(self.model, spec.config, role=spec.role)
        self._optimizer = make_optimizer(
            self._wrapped, spec.config, role=spec.role, dtype=DTYPES[spec.model.dtype]
        )
        self._multiple_of = layout.tensor if layout.sequence_parallel else 1
        self._context = ContextRank(parallel_state.get_context_parallel_rank(), layout.context)

    def info(self) -> RankInfo:
        tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        return RankInfo(
            rank=self.spec.rank,
            data_rank=parallel_state.get_data_parallel_rank(),
            tensor_rank=tensor_rank,
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
            answers=tensor_rank == 0
            and parallel_state.get_context_parallel_rank() == 0
            and parallel_state.is_pipeline_last_stage(ignore_virtual=True),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def logprobs(self, shard: RowShard) -> Float32Array | None:
        """[T of the shard] log p of each token under `loss_mask`, 0 elsewhere."""
        return self._logprobs(shard, self._losses.read_logprobs)

    def teacher_logprobs(self, shard: RowShard) -> Float32Array | None:
        """As `logprobs`, each row by the teacher of its `teacher_index`, at temperature 1."""
        assert self._teachers is not None, "RankSpec.teachers"
        read = self._losses.read_teacher_logprobs
        return self._teachers.logprobs(shard, lambda own: self._logprobs(own, read))

    def reference_logprobs(self, shard: RowShard) -> Float32Array | None:
        """As `logprobs`, of the weights that the role began with."""
        assert self._reference is not None, "RankSpec.keeps_reference"
        with self._reference.in_place():
            return self.logprobs(shard)

    def values(self, shard: RowShard) -> Float32Array | None:
        """[T of the shard] V(state before the token), 0 at each row's first token."""
        batches = self._micro_batches(shard)
        self.model.eval()
        outputs = forward_only(self._wrapped, batches, self._losses.read_values)
        return self._scatter(shard, batches, outputs)

    def update(self, shard: RowShard, *, step: int, actions: int) -> dict[str, float] | None:
        """One optimizer step; `actions` of all data-parallel ranks together normalise the loss."""
        batches = self._micro_batches(shard)
        if self._teachers is not None and "teacher_index" in shard.columns:
            self.model.eval()
            batches = self._teachers.with_states(self._wrapped, batches, shard, step=step)
        self.model.train()
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        self._indexers.weigh(batches)
        for part in model_chunks(self.model):
            part.synchronise_mtp()
        loss_function: LossFunction = self._losses.bind(actions)
        if self._mtp is not None:
            loss_function = self._mtp.beside(loss_function, batches)
        statistics = self._sum(forward_backward(self._wrapped, batches, loss_function), actions)
        learned = self._indexers.statistics(batches)
        lr = set_learning_rate(
            self._optimizer, self.spec.config, step=step, total_steps=self.spec.total_steps
        )
        outcome = guarded_step(
            self._optimizer,
            finite=self._agree_finite(statistics),
            norm_limit=self.spec.config.grad_norm_limit,
        )
        if not statistics:
            return None
        return {
            **statistics,
            **learned,
            "grad_norm": outcome.grad_norm,
            "lr": lr,
            "skipped": float(not outcome.stepped),
        }

    def save(self, directory: str, step: int) -> None:
        checkpoint.save(self._trained(), directory, self._role_file(step))

    def load(self, directory: str) -> int:
        return checkpoint.load(self._trained(), directory, self._role_file(step=0))

    def export(self, version: int, directory: str) -> WeightManifest | None:
        return self._publisher.publish(version, directory)

    def share(self, version: int) -> WeightManifest | None:
        if self._sharer is None:
            self._sharer = TensorSharer(exported(self.model))
        return self._sharer.share(version)

    def export_hf(self, directory: str) -> None:
        write_checkpoint(self.model, self.spec.model.hf_config, directory)

    def close(self) -> None:
        """Leaves the process groups, so that no peer sees a broken connection."""
        destroy_parallel()

    def _logprobs(self, shard: RowShard, readout: Readout) -> Float32Array | None:
        batches = self._micro_batches(shard)
        self.model.eval()
        outputs = forward_only(self._wrapped, batches, readout)
        return self._scatter(shard, batches, outputs)

    def _micro_batches(self, shard: RowShard) -> tuple[MicroBatch, ...]:
        layout = self.spec.config.layout
        return micro_batches(
            shard,
            multiple_of=self._multiple_of,
            device=self._device,
            context=self._context,
            # Megatron's interleaved schedule takes them in groups of as many as there are stages.
            group_of=layout.pipeline if layout.virtual_pipeline > 1 else 1,
            share_prefixes=self.spec.share_prefixes,
        )

    def _scatter(
        self, shard: RowShard, batches: tuple[MicroBatch, ...], outputs: list[Tensor]
    ) -> Float32Array | None:
        """Results at the asked-for tokens, as a column of the shard."""
        if not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
            return None
        column = np.zeros(len(shard.columns["token_ids"]), np.float32)
        start = 0
        for batch, output in zip(batches, outputs, strict=True):
            column[start + batch.asked] = output.float().cpu().numpy()[: len(batch.asked)]
            start += batch.tokens
        if self._context.size > 1:
            # Each has the results of its own tokens, and zeros elsewhere.
            whole = torch.from_numpy(column).to(self._device)
            dist.all_reduce(whole, group=parallel_state.get_context_parallel_group())
            column = whole.cpu().numpy()
        return column if self.info().answers else None

    def _sum(self, statistics: list[dict[str, Tensor]], actions: int) -> dict[str, float]:
        """Over micro-batches and data-parallel ranks, as means over actions; {} where there are none."""
        if not statistics:
            return {}
        names = list(statistics[0])
        table = torch.stack([torch.stack([s[n].double() for n in names]) for s in statistics])
        total = table.sum(dim=0)
        dist.all_reduce(
            total, group=parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        sums = dict(zip(names, total.tolist(), strict=True))
        return {
            name: s if name == "loss" or name.startswith(MTP) else s / actions
            for name, s in sums.items()
        }

    def _agree_finite(self, statistics: Mapping[str, float]) -> bool:
        """Whether the loss is finite; pipeline stages without a loss learn it from the last."""
        bad = not math.isfinite(statistics.get("loss", 0.0))
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return not bad
        flag = torch.tensor(float(bad), device=self._device)
        dist.all_reduce(
            flag, op=dist.ReduceOp.MAX, group=parallel_state.get_pipeline_model_parallel_group()
        )
        return flag.item() == 0.0

    def _trained(self) -> checkpoint.Trained:
        return checkpoint.Trained(self.model, self._optimizer)

    def _role_file(self, step: int) -> RoleFile:
        spec = self.spec
        return RoleFile(spec.role, step, spec.layout, dict(spec.model.hf_config))


def start(spec: RankSpec, init_method: str, device: torch.device) -> Training:
    """Joins the other ranks and builds the model. Collective."""
    init_parallel(
        layout=spec.config.layout,
        rank=spec.rank,
        world_size=spec.world_size,
        init_method=init_method,
        device=device,
        timeout_s=spec.collective_timeout_s,
        seed=spec.model.seed,
    )
    return Training(spec, device)


def freeze_attention(model: torch.nn.Module) -> None:
    """Attention's weights stay as they are; before the model is wrapped."""
    for name, parameter in model.named_parameters():
        if ATTENTION in name:
            parameter.requires_grad_(False)
