"""A configuration for `rlframe eval`: what its keys together mean, and what can't work of them.

config = load_evaluation(["eval=smoke", "model.path=runs/smoke_0"])     # the run's hf/, suites spelled out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlframe.config.check import check_parts
from rlframe.config.check_cluster import check_engines, check_resources, check_runtime_env
from rlframe.config.check_model import check_context, check_model
from rlframe.config.compose import load_config
from rlframe.config.schema import EnvConfig, RolloutConfig, RunConfig
from rlframe.config.search import EVALUATION_ROOT
from rlframe.config.values import shown
from rlframe.errors import UserError, nearest

UNION = "union"
EFFORT_KEYS = (
    "template_args",
    "max_new_tokens",
    "max_context_tokens",
    "max_turns",
    "attempt_timeout_s",
)
SUITE_KEYS = ("name", "args", "held_out", "seed")


def load_evaluation(overrides: Sequence[str], *, config_dir: str | None = None) -> RunConfig:
    """Composed and checked; `env` is the union of the suites, `rollout` has the effort in it, `model.path` is a
    checkpoint. Raises UserError for whatever can't work."""
    config = load_config(overrides, config_dir=config_dir, root=EVALUATION_ROOT)
    config.model.path = checkpoint_of(config.model.path)
    config.env = union_of(config, config_dir=config_dir)
    config.rollout = with_effort(config)
    for check in (
        check_model,
        check_context,
        check_resources,
        check_engines,
        check_runtime_env,
    ):
        check(config)
    check_parts(config)
    return config


def checkpoint_of(path: str) -> str:
    """A run directory stands for the model that it ended with, its `hf/`."""
    given = Path(path)
    if not path or (given / "config.json").is_file():
        return path
    if (given / "hf" / "config.json").is_file():
        return str(given / "hf")
    if (given / "checkpoints").is_dir():
        raise UserError(
            f"model.path={path}: this run has no hf/ yet, it is not at its end. `rlframe convert {path} OUT` "
            "makes a Hugging Face checkpoint of its latest checkpoint"
        )
    return path


def union_of(config: RunConfig, *, config_dir: str | None = None) -> EnvConfig:
    """`env.name=union` with every suite spelled out: name, args, held_out, seed."""
    env = config.env
    given = config.eval.suites or {
        env.name.rpartition(":")[2]: {"name": env.name, "args": env.args}
    }
    parts = {name: _suite(name, suite, env, config_dir) for name, suite in given.items()}
    return replace(env, name=UNION, args={"parts": parts})


def _suite(name: str, suite: Any, env: EnvConfig, config_dir: str | None) -> dict[str, Any]:
    """An option of the group `env`, or a dictionary that says it all."""
    key = f"eval.suites.{name}"
    if isinstance(suite, str):
        option = load_config([f"env={suite}"], config_dir=config_dir).env
        return {
            "name": option.name,
            "args": option.args,
            "held_out": option.held_out,
            "seed": env.seed,
        }
    if not isinstance(suite, Mapping) or "name" not in suite:
        raise UserError(
            f"{key}={shown(suite)}: must be an option of the group env, such as smoke_puzzles, or "
            "{name: ..., args: {...}, held_out: ..., seed: ...}"
        )
    for part in suite:
        if part not in SUITE_KEYS:
            raise UserError(f"{key}.{part}: there is no such key.{nearest(str(part), SUITE_KEYS)}")
    return {"args": {}, "held_out": env.held_out, "seed": env.seed, **suite}


def with_effort(config: RunConfig) -> RolloutConfig:
    """`rollout` as the chosen effort changes it."""
    rollout, effort = config.rollout, config.eval.effort
    if not effort:
        return rollout
    efforts = config.eval.efforts
    if effort not in efforts:
        raise UserError(f"eval.effort={effort}: eval.efforts has none.{nearest(effort, efforts)}")
    level = efforts[effort]
    key = f"eval.efforts.{effort}"
    if not isinstance(level, Mapping):
        raise UserError(f"{key}={shown(level)}: must be a dictionary of {', '.join(EFFORT_KEYS)}")
    for name, value in level.items():
        if name not in EFFORT_KEYS:
            raise UserError(f"{key}.{name}: there is no such key.{nearest(str(name), EFFORT_KEYS)}")
        wanted: Any = dict if name == "template_args" else int | float
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise UserError(
                f"{key}.{name}={shown(value)}: must be "
                + ("a dictionary" if name == "template_args" else "a number")
            )
    changed = {k: v for k, v in level.items() if k not in ("template_args", "max_new_tokens")}
    return replace(
        rollout,
        **changed,
        template_args={**rollout.template_args, **level.get("template_args", {})},
        sampling=replace(
            rollout.sampling,
            max_new_tokens=level.get("max_new_tokens", rollout.sampling.max_new_tokens),
        ),
    )
