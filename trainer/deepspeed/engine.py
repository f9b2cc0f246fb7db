"""DeepSpeed's engine around one rank's model, from the configuration that passes through."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from rlframe.errors import UserError
from trainer.deepspeed.optimizer import GuardedStep, gradient_norm, make_optimizer
from trainer.defaults import deepspeed_defaults
from trainer.ranks.spec import RankSpec


class Engine:
    """One model with its optimizer, sharded as `zero_optimization.stage` says.

    Gradients are summed over micro-batches and averaged over ranks; a step ends the accumulation.
    """

    def __init__(self, model: nn.Module, spec: RankSpec) -> None:
        """Collective. UserError where DeepSpeed refuses the configuration."""
        settings = settings_of(spec)
        zero = settings["zero_optimization"]
        self.stage = int(zero.get("stage", 0))
        offloaded = _on_cpu(zero.get("offload_optimizer"))
        self.optimizer = make_optimizer(model, spec.config, offloaded=offloaded)
        deepspeed.utils.logger.setLevel("WARNING")
        try:
            self.inner: Any = deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=settings
            )[0]
        except (AssertionError, ValueError, TypeError) as error:
            key = f"trainer.{spec.role}.deepspeed"
            raise UserError(
                f"{key}: DeepSpeed refuses {dict(spec.config.deepspeed)}: {error}"
            ) from error
        self.guard = GuardedStep(self.optimizer, spec.config, norm=self._norm)

    def _norm(self) -> float:
        if self.inner.optimizer is self.optimizer:  # ZeRO 0: there is no wrapper
            return gradient_norm(self.optimizer)
        return float(self.inner.optimizer._global_grad_norm)

    @property
    def masters(self) -> list[Tensor]:
        """What the optimizer steps: this rank's flat float32 partitions, or (ZeRO 0) the parameters."""
        wrapper = self.inner.optimizer
        for name in (
            "fp32_partitioned_groups_flat",  # ZeRO 3
            "single_partition_of_fp32_groups",  # 1 and 2
            "fp32_groups_flat_partition",  # 1, of a model in bfloat16
        ):
            if hasattr(wrapper, name):
                return list(getattr(wrapper, name))
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def local_tensors(self) -> list[Tensor]:
        """This rank's part of every parameter and buffer, in the model's dtype."""
        module: nn.Module = self.inner.module
        parts = [p.ds_tensor if hasattr(p, "ds_tensor") else p for p in module.parameters()]
        return [*parts, *module.buffers()]

    @contextmanager
    def partitioned(self) -> Iterator[None]:
        """ZeRO 3 keeps small parameters whole between steps; in here they are not, and come back from the
        parts of all ranks. Collective."""
        whole = list(getattr(self.inner.optimizer, "persistent_parameters", ()))
        if whole:
            whole[0].partition(whole)
        try:
            yield
        finally:
            if whole:
                whole[0].all_gather(whole)

    def refresh_parameters(self) -> None:
        """The model's parameters from the float32 ones. Collective."""
        wrapper = self.inner.optimizer
        if self.stage == 3:
            with self.partitioned():
                for group in range(len(wrapper.fp16_groups)):
                    wrapper._reassign_or_swap_out_partitioned_parameters(group)
        elif hasattr(wrapper, "update_lp_params"):
            wrapper.update_lp_params()

    def close(self) -> None:
        self.inner.destroy()


def settings_of(spec: RankSpec) -> dict[str, Any]:
    """DeepSpeed's configuration: the user's over rlframe's defaults, and what follows from other keys."""
    half = spec.model.dtype == "bfloat16"
    settings = deepspeed_defaults(half=half, on_cpu=spec.device == "cpu")
    for name, value in copy.deepcopy(dict(spec.config.deepspeed)).items():
        both = isinstance(value, dict) and isinstance(settings.get(name), dict)
        settings[name] = {**settings[name], **value} if both else value
    return settings | {
        "bf16": {**settings.get("bf16", {}), "enabled": half},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # the guard clips; DeepSpeed's default is 1.0
        "zero_allow_untested_optimizer": True,  # torch's SGD
    }


def _on_cpu(offload: Any) -> bool:
    return isinstance(offload, dict) and str(offload.get("device", "none")) != "none"


def whole(parameters: list[nn.Parameter]) -> Any:
    """A context in which these are whole on every rank, to be read (ZeRO 3; else they are anyway)."""
    return deepspeed.zero.GatheredParameters(parameters)


def world_size() -> int:
    return torch.distributed.get_world_size()
