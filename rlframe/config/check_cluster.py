"""What actors ask of the cluster, and how weights reach the engines."""

from __future__ import annotations

from typing import Any

from rlframe.cluster.demand import CRITIC, ENGINE, EVAL_ENGINE, POLICY, TEACHER
from rlframe.config.check_model import check_divides, model_shape
from rlframe.config.schema import PpoConfig, RunConfig
from rlframe.config.values import shown
from rlframe.errors import UserError, nearest

PARTS = (ENGINE, EVAL_ENGINE, POLICY, CRITIC, TEACHER)


def check_resources(config: RunConfig) -> None:
    """`cluster.resources` is {part: {resource: amount}}; GPUs above one are whole."""
    for part, wanted in config.cluster.resources.items():
        key = f"cluster.resources.{part}"
        if part not in PARTS:
            raise UserError(
                f"{key}: there is no such part.{nearest(part, PARTS)} Parts: {', '.join(PARTS)}"
            )
        if not isinstance(wanted, dict):
            raise UserError(
                f"{key}={shown(wanted)}: must be a dictionary, such as {{my_node: 0.001}}"
            )
        for name, amount in wanted.items():
            if name in ("CPU", "GPU"):
                raise UserError(f"{key}.{name}: set cluster.{name.lower()}s_per_* instead")
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
                raise UserError(f"{key}.{name}={shown(amount)}: must be a number above 0")
    for name in ("gpus_per_rank", "gpus_per_engine"):
        amount = vars(config.cluster)[name]
        if amount > 1 and amount != int(amount):
            raise UserError(
                f"cluster.{name}={amount:g}: Ray takes a part of one GPU, or whole GPUs"
            )


def check_engines(config: RunConfig) -> None:
    """The engines' own layout divides the model, and they have a GPU a rank."""
    if not isinstance(config.algorithm, PpoConfig):
        return
    arguments = config.rollout.engine_args
    tensor, pipeline = arguments.get("tp_size", 1), arguments.get("pp_size", 1)
    for name, size in (("tp_size", tensor), ("pp_size", pipeline)):
        if size < 1:
            raise UserError(f"rollout.engine_args.{name}={size}: must be at least 1")
    shape = model_shape(config.model)
    check_divides("rollout.engine_args.tp_size", tensor, shape, ("num_attention_heads",))
    gpus = config.cluster.gpus_per_engine
    ranks = tensor * pipeline
    if config.cluster.device != "cpu" and ranks > 1 and gpus != ranks:
        raise UserError(
            f"rollout.engine_args.tp_size={tensor} x pp_size={pipeline} needs cluster.gpus_per_engine={ranks}, "
            f"not {gpus:g}"
        )
    if config.rollout.router_args and not config.rollout.router and config.rollout.engines == 1:
        raise UserError("rollout.router_args has no effect with rollout.router=false")


def check_transport(config: RunConfig) -> None:
    """`tensor` hands memory over, so both sides are on one host (checked when the nodes are known)."""
    sync = config.sync
    if sync.transport == "tensor" and sync.directory:
        raise UserError("sync.directory is only for sync.transport=disk: leave one of them out")


def check_runtime_env(config: RunConfig) -> None:
    """Names are checked as passed-through options; environment variables are text."""
    variables: Any = config.cluster.runtime_env.get("env_vars", {})
    key = "cluster.runtime_env.env_vars"
    if not isinstance(variables, dict):
        raise UserError(f"{key}={shown(variables)}: must be a dictionary, such as {{NAME: 'text'}}")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise UserError(
                f"{key}.{name}={shown(value)}: must be text; quote it: '{key}.{name}=\"{shown(value)}\"'"
            )
