"""One role's training state on disk, whole or not at all, for any number of ranks and any ZeRO stage.

A checkpoint is a directory: float32 parameters and the optimizer's moments under the model's own names, in one
safetensors file a rank; `state.json` with the optimizer's count of steps; and `role.json`, which says what it
is. Tensors are whole, so that another number of ranks or another stage can load them (DeepSpeed's own
checkpoints are of one layout). It is written beside its place and renamed when it is complete. What never
learns is not in it: it comes from the model that the run began with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from rlframe.durable_files import replace_directory
from rlframe.errors import RunError, UserError
from trainer.deepspeed.engine import Engine
from trainer.models.safetensors_files import SafetensorsFile, StoredTensor, stored_tensors
from trainer.ranks.role_file import RoleFile, read_role_file, unreadable, write_role_file

STATE_FILE = "state.json"
WEIGHTS = "weights"


class TrainedState:
    """Parameters that learn, and their moments, by `PART/NAME`; whole, though ranks have parts of them."""

    def __init__(
        self, engine: Engine, shapes: Mapping[str, tuple[int, ...]], moments: tuple[str, ...]
    ) -> None:
        """`shapes`: of the parameters that learn, by the names that the engine's module has for them."""
        self._engine, self._moments = engine, moments
        named = dict(engine.inner.module.named_parameters())
        self._parameters: dict[str, nn.Parameter] = {name: named[name] for name in shapes}
        self.shapes = {
            f"{part}/{name}": shape
            for name, shape in shapes.items()
            for part in (WEIGHTS, *moments)
        }
        self._allocate()

    def _allocate(self) -> None:
        """Zeros, which the optimizer would make at its first step: a model is saved or loaded before, too."""
        optimizer = self._engine.optimizer
        for master in self._engine.masters:
            state = optimizer.state[master]
            state |= {name: torch.zeros_like(master) for name in self._moments}
            if "exp_avg" in state:
                counts_in_tensors = isinstance(optimizer, torch.optim.AdamW)
                state["step"] = torch.zeros(()) if counts_in_tensors else 0
        link = getattr(self._engine.inner.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Collective; every rank is given every tensor."""
        for key in self.shapes:
            yield key, self._read(key)

    def _read(self, key: str) -> Tensor:
        part, _, name = key.partition("/")
        parameter = self._parameters[name]
        if self._engine.stage == 0:
            moments = self._engine.optimizer.state[parameter]
            return parameter.detach() if part == WEIGHTS else moments[part]
        if part == WEIGHTS:
            return safe_get_full_fp32_param(parameter)  # type: ignore[no-any-return]
        return safe_get_full_optimizer_state(parameter, part)  # type: ignore[no-any-return]

    @torch.no_grad()
    def write(self, key: str, value: Tensor) -> None:
        """This rank's part of it. `refresh` when all are written."""
        part, _, name = key.partition("/")
        parameter = self._parameters[name]
        if self._engine.stage == 0:
            self._read(key).copy_(value)
        elif part == WEIGHTS:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, part)

    def refresh(self) -> None:
        self._engine.refresh_parameters()

    @property
    def optimizer_steps(self) -> int:
        state = self._engine.optimizer.state
        return int(state[self._engine.masters[0]].get("step", 0))

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        for state in self._engine.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(float(steps))
            elif "step" in state:
                state["step"] = steps


def save(state: TrainedState, directory: str, about: RoleFile) -> None:
    """Collective. An existing checkpoint of that name is replaced.

    Raises RunError if it can't be written (a full disk); an existing one is untouched then.
    """
    target = Path(directory)
    staging = target.with_name(f".{target.name}.partial")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    try:
        if rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        dist.barrier()
        own = list(state.shapes)[rank::ranks]
        layout = {key: ("F32", state.shapes[key]) for key in own}
        file = SafetensorsFile(staging / f"rank_{rank}.safetensors", layout)
        for key, tensor in state.tensors():
            if key in layout:
                file.write(key, tensor.float())
        file.finish()
        dist.barrier()
        if rank == 0:
            steps = json.dumps({"optimizer_steps": state.optimizer_steps})
            (staging / STATE_FILE).write_text(steps)
            write_role_file(staging, about)
            replace_directory(staging, target)
    except OSError as error:
        raise RunError(f"the checkpoint '{directory}' can't be written: {error}") from error
    dist.barrier()


def load(state: TrainedState, directory: str, expected: RoleFile) -> int:
    """Collective; returns the step that was saved. UserError if there is no checkpoint, or if it is of another
    role, backend or model than `expected`."""
    about = read_role_file(directory, expected)
    try:
        stored = _stored(Path(directory))
        found = {key: tensor.shape for key, tensor in stored.items()}
        if found != state.shapes:
            differing = sorted(
                k for k in found.keys() | state.shapes if found.get(k) != state.shapes.get(k)
            )
            raise UserError(f"tensor '{differing[0]}' is not the model's")
        steps = int(json.loads((Path(directory) / STATE_FILE).read_text())["optimizer_steps"])
        for key, tensor in stored.items():
            state.write(key, tensor.read())
    except (UserError, OSError, ValueError, KeyError) as error:
        raise unreadable(directory, about, expected, f"{type(error).__name__}: {error}") from error
    state.optimizer_steps = steps
    state.refresh()
    return about.step


def _stored(directory: Path) -> dict[str, StoredTensor]:
    files = sorted(directory.glob("rank_*.safetensors"))
    return {key: tensor for file in files for key, tensor in stored_tensors(file).items()}
