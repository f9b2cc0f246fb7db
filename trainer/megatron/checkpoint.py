"""One role's training state on disk: Megatron's `dist_checkpointing`, whole or not at all.

A checkpoint is a directory: the sharded model, optimizer and random states in Megatron's `torch_dist`
format, and `role.json`, which says what it is. It is written beside its place under a hidden name,
flushed to the disk, and renamed: a directory of the asked-for name is always complete. Tensors are
saved by their place in the whole model, so that any layout can load what any other has saved.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from rlframe.durable_files import replace_directory
from rlframe.errors import RunError
from trainer.megatron import optimizer_state
from trainer.megatron.checkpoint_writer import DirectWriter
from trainer.models.language_model import LanguageModel, model_chunks
from trainer.ranks.role_file import RoleFile, read_role_file, unreadable, write_role_file

METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}
"""How optimizer state is laid out: by parameter, so that every layout can read it."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The parts of a rank that a checkpoint holds."""

    model: torch.nn.Module
    """The model's chunks themselves, without the data-parallel wrapper."""
    optimizer: MegatronOptimizer


def save(trained: Trained, directory: str, about: RoleFile) -> None:
    """Collective over all ranks of the role. An existing checkpoint of that name is replaced.

    Raises RunError if it can't be written (a full disk); an existing one is untouched then.
    """
    target = Path(directory)
    staging = target.with_name(f".{target.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    dist.barrier()
    state = _sharded_state(trained, is_loading=False, with_random_state=True)
    try:
        dist_checkpointing.save(state, str(staging), _writer())
    except CheckpointException as error:
        raise RunError(f"the checkpoint '{directory}' can't be written: {_root(error)}") from error
    if dist.get_rank() == 0:
        write_role_file(staging, about)
        replace_directory(staging, target)
    dist.barrier()


def load(trained: Trained, directory: str, expected: RoleFile) -> int:
    """Collective. Fills model, optimizer and (if the layout is the saved one) random states.

    Returns the step that was saved. Raises UserError if there is no checkpoint, or if it is of another
    role or of another model than `expected`.
    """
    about = read_role_file(directory, expected)
    same_layout = dict(about.layout) == dict(expected.layout)
    state = _sharded_state(trained, is_loading=True, with_random_state=same_layout)
    try:
        loaded = dist_checkpointing.load(state, directory)
    except (CheckpointException, CheckpointingException, KeyError, ValueError) as error:
        raise unreadable(directory, about, expected, _root(error)) from error
    for name, chunk in _named_chunks(trained.model):
        chunk.load_state_dict(loaded[name])
    optimizer_state.load(trained.optimizer, loaded["optimizer"])
    if same_layout:
        _set_random_state(loaded["random"])
    return about.step


def _sharded_state(
    trained: Trained, *, is_loading: bool, with_random_state: bool
) -> dict[str, Any]:
    state: dict[str, Any] = {
        name: chunk.sharded_state_dict(metadata=METADATA)
        for name, chunk in _named_chunks(trained.model)
    }
    model = dict(state)
    state["optimizer"] = trained.optimizer.sharded_state_dict(
        model, is_loading=is_loading, metadata=METADATA
    )
    if with_random_state:
        state["random"] = ShardedObject(
            "random", _random_state(), (dist.get_world_size(),), (dist.get_rank(),)
        )
    return state


def _named_chunks(model: torch.nn.Module) -> list[tuple[str, LanguageModel]]:
    return [(f"model{part or ''}", chunk) for part, chunk in enumerate(model_chunks(model))]


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "megatron": get_cuda_rng_tracker().get_states(),
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["megatron"])


def _writer() -> Any:
    """Data-parallel ranks share the writing of what they all hold."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    direct = DirectWriter()
    return FullyParallelSaveStrategyWrapper(direct, group) if group.size() > 1 else direct


def _root(error: BaseException) -> str:
    """The error of the first rank that failed, in one line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
