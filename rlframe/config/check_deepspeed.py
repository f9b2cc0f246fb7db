"""What holds of one trainer's backend only: which keys each of them reads, and what DeepSpeed can't do."""

from __future__ import annotations

from collections.abc import Mapping

from rlframe.config.schema import PolicyRoleConfig, RoleConfig, RunConfig
from rlframe.config.values import shown
from rlframe.errors import UserError, nearest

OPTIMIZERS = ("adam", "sgd")
OPTIMIZER_OPTIONS = (
    "optimizer",
    "adam_beta1",
    "adam_beta2",
    "adam_eps",
    "sgd_momentum",
    "weight_decay",
    "clip_grad",
    "min_lr",
)
"""Of Megatron's, what both backends understand, with the same meaning and the same defaults."""
STAGES = (0, 1, 2, 3)


def check_backend(config: RunConfig) -> None:
    """Raises UserError for a key that the chosen backend would not read."""
    roles: Mapping[str, RoleConfig] = {
        **({"policy": config.trainer.policy} if config.algorithm.name != "value" else {}),
        **({"critic": config.trainer.critic} if config.algorithm.name != "sft" else {}),
    }
    if config.trainer.backend == "deepspeed" and config.trainer.share_prefixes:
        raise UserError(
            "trainer.share_prefixes=true needs an attention of rlframe's own, which trainer=megatron has: set it "
            "to false"
        )
    for name, role in roles.items():
        if config.trainer.backend == "deepspeed":
            _check_layout(role, f"trainer.{name}.layout")
            _check_unread(role, f"trainer.{name}")
            _check_optimizer(role, f"trainer.{name}.optimizer")
            _check_settings(role, f"trainer.{name}.deepspeed", dtype=config.model.dtype)
        else:
            _check_megatron(role, f"trainer.{name}")


def _check_layout(role: RoleConfig, key: str) -> None:
    layout = role.layout
    for name in ("tensor", "pipeline", "context", "expert", "virtual_pipeline"):
        if getattr(layout, name) > 1:
            raise UserError(
                f"{key}.{name}={getattr(layout, name)}: DeepSpeed ranks are data parallel only. Set {key}.data, "
                f"and let {key.replace('layout', 'deepspeed.zero_optimization.stage')}=3 split the model "
                "over them; or choose trainer=megatron"
            )
    if layout.sequence_parallel or layout.pipeline_layers:
        raise UserError(f"{key}: only `data` is for trainer=deepspeed")


def _check_unread(role: RoleConfig, key: str) -> None:
    for name in ("transformer", "ddp"):
        if getattr(role, name):
            raise UserError(
                f"{key}.{name} has options of Megatron, which trainer=deepspeed does not use: take them out"
            )
    if not isinstance(role, PolicyRoleConfig):
        return
    for name, off in (("mtp", "off"), ("indexer", "frozen")):
        if getattr(role, name).mode != off:
            raise UserError(
                f"{key}.{name}.mode={getattr(role, name).mode} is for trainer=megatron; here it is '{off}'"
            )


def _check_optimizer(role: RoleConfig, key: str) -> None:
    for name in role.optimizer:
        if name not in OPTIMIZER_OPTIONS:
            raise UserError(
                f"{key}.{name}: with trainer=deepspeed it can be one of {', '.join(OPTIMIZER_OPTIONS)}."
                f"{nearest(name, OPTIMIZER_OPTIONS)}"
            )
    kind = role.optimizer.get("optimizer", "adam")
    if kind not in OPTIMIZERS:
        raise UserError(
            f"{key}.optimizer={kind}: with trainer=deepspeed one of {', '.join(OPTIMIZERS)}"
        )


def _check_settings(role: RoleConfig, key: str, *, dtype: str) -> None:
    zero = role.deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 2)
    if stage not in STAGES or isinstance(stage, bool):
        raise UserError(f"{key}.zero_optimization.stage={shown(stage)}: one of 0, 1, 2, 3")
    if stage == 0 and dtype != "float32":
        raise UserError(
            f"{key}.zero_optimization.stage=0 keeps no float32 weights beside model.dtype={dtype}: use 1, 2 "
            "or 3, or model.dtype=float32"
        )
    for part, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        device = (zero.get(part) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise UserError(f"{key}.zero_optimization.{part}.device={device}: none or cpu")
        if device == "cpu" and stage < lowest:
            raise UserError(
                f"{key}.zero_optimization.{part} needs stage {lowest} or more, not {stage}"
            )
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") == "cpu"
    if offloads and role.optimizer.get("optimizer", "adam") != "adam":
        raise UserError(f"{key}.zero_optimization.offload_optimizer is for the optimizer adam")


def _check_megatron(role: RoleConfig, key: str) -> None:
    if role.deepspeed:
        raise UserError(f"{key}.deepspeed is for trainer=deepspeed; this run has trainer=megatron")
    if role.attention != "auto":
        raise UserError(
            f"{key}.attention={role.attention} is for trainer=deepspeed; Megatron has an attention of its own"
        )
    if role.gradient_checkpointing:
        raise UserError(
            f"{key}.gradient_checkpointing is for trainer=deepspeed; with Megatron set "
            f"{key}.transformer.recompute_granularity"
        )
