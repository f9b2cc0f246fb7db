"""Hugging Face checkpoints in and out of a model's chunks, bit for bit, for any layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from rlframe.errors import UserError
from rlframe.model_shapes.family import ModelShape
from trainer.models.hf_files import HfCheckpoint
from trainer.models.hf_names import LM_HEAD, VALUE_HEAD, Cut, Entry, Size, cut, join, part_shape
from trainer.models.language_model import LanguageModel, model_chunks
from trainer.models.model_names import chunk_entries, tensor_shapes, why_not
from trainer.random_weights import VALUE_HEAD_SCALE, seeded_normal


def load_hf(model: torch.nn.Module, path: str | Path, *, seed: int) -> None:
    """Fill this rank's parameters from a checkpoint directory.

    Values are cast to the model's dtype. A critic takes the backbone of a policy's checkpoint, and a
    new value head from `seed` unless the checkpoint has one (`score.weight`); an MTP layer comes from `seed`
    too where the checkpoint has none. An optimizer that was built before keeps its own master weights:
    call its `reload_model_params()`.
    Raises UserError, naming file and tensor, for all that are missing, too many, or of another shape, and
    for one with values that are not finite.
    """
    chunk = model_chunks(model)[0]
    checkpoint = HfCheckpoint(path)
    expected = tensor_shapes(chunk.shape, role=chunk.role)
    if VALUE_HEAD not in checkpoint.shapes:
        expected.pop(VALUE_HEAD, None)
    unused = {LM_HEAD} if LM_HEAD not in expected else set()
    theirs = {name for name in checkpoint.shapes if is_mtp(name, chunk.shape)}
    ours = {name for name in expected if is_mtp(name, chunk.shape)}
    if not ours:
        unused |= theirs
    elif not theirs:
        expected = {name: size for name, size in expected.items() if name not in ours}
    checkpoint.check(
        expected, unused=frozenset(unused), why_not=lambda name: why_not(name, chunk.shape)
    )

    def source(name: str) -> Tensor:
        if name not in checkpoint.shapes:
            return random_tensor(name, chunk.shape, role=chunk.role, seed=seed)
        tensor = checkpoint.read(name)
        if not tensor.isfinite().all():
            raise UserError(
                f"{checkpoint.file_of(name)}: tensor '{name}' has values that are not finite."
            )
        return tensor

    _fill(model, source)


def init_random(model: torch.nn.Module, *, seed: int) -> None:
    """Fill this rank's parameters from `seed`: the same full tensors for every layout.

    Matrices are normal with the config's `initializer_range`, norms are one, biases zero, the value head
    is small.
    """
    chunk = model_chunks(model)[0]
    _fill(model, lambda name: random_tensor(name, chunk.shape, role=chunk.role, seed=seed))


def export_hf(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors under their Hugging Face names, whole, one after the other.

    Collective: every rank iterates to the end; only rank 0 of the role is given tensors, on the model's
    device and in its dtype. At most one parameter is in flight. A tensor may be a view of a parameter
    (always, but for q, k and v, on a single rank): copy it before the next optimizer step.
    """
    parts = model_chunks(model)
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    expert_ranks = parallel_state.get_expert_model_parallel_world_size()
    for index, chunk in enumerate(parts[0].chunks):
        own = parts[index // stages]
        entries = chunk_entries(own.shape, chunk, role=own.role, expert_ranks=expert_ranks)
        parameters = weights_of(own)
        for entry in entries:
            if entry.exported:
                yield from _export_entry(entry, index % stages, parameters)


def weights_of(chunk: torch.nn.Module) -> dict[str, Tensor]:
    """What a checkpoint has of a chunk: its parameters, and the buffers that it is saved with."""
    saved = chunk.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in saved.items() if isinstance(tensor, Tensor)}


def is_mtp(name: str, shape: ModelShape) -> bool:
    """Whether a tensor belongs to the MTP layer, which the checkpoint stores as one more layer."""
    return name.startswith(f"model.layers.{shape.layers}.")


def _fill(model: torch.nn.Module, source: Callable[[str], Tensor]) -> None:
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for chunk in model_chunks(model):
        entries = own_entries(chunk)
        weights = weights_of(chunk)
        assert weights.keys() == {e.parameter for e in entries}, weights.keys() ^ {
            e.parameter for e in entries
        }
        with torch.no_grad():
            for entry in entries:
                full = {name: source(name) for name in entry.tensors}
                weights[entry.parameter].copy_(cut(entry, full, rank=rank, size=size))


def own_entries(chunk: LanguageModel) -> tuple[Entry, ...]:
    """What this rank has of a chunk."""
    return chunk_entries(
        chunk.shape,
        chunk.chunk,
        role=chunk.role,
        expert_ranks=parallel_state.get_expert_model_parallel_world_size(),
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
    )


def _export_entry(
    entry: Entry, stage: int, weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Bring the parts of one parameter to rank 0 of the role, and put them together there."""
    holders = _holders(entry, stage)
    rank = dist.get_rank()
    if rank in holders and rank != 0:
        dist.send(weights[entry.parameter].detach().contiguous(), dst=0)
    if rank == 0:
        parts = [_part(entry, holder, weights) for holder in holders]
        yield from join(entry, parts).items()


def _holders(entry: Entry, stage: int) -> list[int]:
    """The first ranks that together have a parameter, in the order of its parts.

    Ranks count tensor, context, data, pipeline; experts are spread over the same ranks of a stage,
    expert-parallel neighbours next to each other (`trainer.megatron.parallel`).
    """
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    first = stage * (dist.get_world_size() // stages)
    match entry.cut:
        case Cut.WHOLE:
            return [first]
        case Cut.EXPERT:
            return [first + entry.expert_rank]
        case _:
            return [first + r for r in range(tensor)]


def _part(entry: Entry, holder: int, weights: Mapping[str, Tensor]) -> Tensor:
    if holder == 0:
        return weights[entry.parameter].detach()
    size = parallel_state.get_tensor_model_parallel_world_size()
    like = next(iter(weights.values()))
    dtype = torch.float32 if entry.keeps_float32 else like.dtype
    part = torch.empty(part_shape(entry, size=size), dtype=dtype, device=like.device)
    dist.recv(part, src=holder)
    return part


def random_tensor(name: str, shape: ModelShape, *, role: str, seed: int) -> Tensor:
    """One full tensor in float32; its own generator, so that no other tensor's size matters."""
    size = _all_shapes(shape, role)[name]
    if len(size) == 1:
        return torch.zeros(size) if name.endswith("bias") else torch.ones(size)
    std = VALUE_HEAD_SCALE * shape.hidden_size**-0.5 if name == VALUE_HEAD else shape.init_std
    return seeded_normal(name, size, std=std, seed=seed)


@lru_cache(maxsize=2)
def _all_shapes(shape: ModelShape, role: str) -> dict[str, Size]:
    """Thousands of experts make this worth keeping."""
    return tensor_shapes(shape, role=role)
