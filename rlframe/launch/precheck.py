"""What a dry run checks of the parts themselves: the model's shape, and the environment with its data.

A real run refuses the same, where it makes them. Nothing is claimed or written here.
"""

from __future__ import annotations

from rlframe.config.check_model import model_shape
from rlframe.config.schema import PpoConfig, RunConfig
from rlframe.model_shapes.dense import DenseShape
from rlframe.model_shapes.family import read_shape


def precheck(config: RunConfig) -> None:
    """Raises UserError for a model that has no definition here, a layout that does not divide it, an
    environment that is unknown or a data file that is broken."""
    from envs.registry import make_source
    from envs.source_check import check_source
    from rlframe.launch.black_box import black_box_spec

    described = model_shape(config.model)
    megatron = config.trainer.backend == "megatron"
    if megatron and (config.model.path or "vocab_size" in described):
        shape = read_shape(described)
        if isinstance(shape, DenseShape):  # GLM's layout was checked with the rest of the keys
            shape.check_layout(config.trainer.policy.layout, "policy")
    env = config.env
    source = make_source(env.name, env.args, seed=env.seed, held_out=env.held_out)
    check_source(source, name=env.name, mode=attempts_by(config))
    if attempts_by(config) == "black_box":
        black_box_spec(config.rollout).check()


def attempts_by(config: RunConfig) -> str:
    """`rollout.mode` of a run that makes attempts; empty for one that makes none (SFT)."""
    return config.rollout.mode if isinstance(config.algorithm, PpoConfig) else ""
