"""The model: its checkpoint and tokenizer are there, its layout divides, its lengths fit. Reads only JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlframe.config.schema import (
    LayoutConfig,
    ModelConfig,
    PpoConfig,
    RunConfig,
    ValueLossConfig,
)
from rlframe.errors import UserError
from rlframe.model_shapes import dense, glm, glm_layout
from rlframe.model_shapes.family import has_definition
from rlframe.model_shapes.family import read_shape as read_megatron_shape

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
REQUIRED = ("model_type", *SIZES[:4])
INDEX = "model.safetensors.index.json"


def check_model(config: RunConfig) -> None:
    """`model.*`; the critic's own checkpoint is `check_critic`'s."""
    model = config.model
    if not model.path and not model.hf_config:
        raise UserError(
            "model.path is empty and so is model.hf_config: give model.path a Hugging Face checkpoint "
            "directory, or choose random weights, e.g. model=tiny_qwen3"
        )
    shape = model_shape(model)
    if config.trainer.backend == "megatron" and not has_definition(shape):
        read_megatron_shape(shape)  # says why, and what to do
    if model.path and model.hf_config:
        raise UserError(
            "model.hf_config describes random weights, but model.path names a checkpoint: leave one out "
            "(model=hf has no hf_config)"
        )
    if model.path and model.tokenizer == "build":
        raise UserError(
            "model.tokenizer=build makes new token ids, which the weights in model.path do not know: leave "
            "it empty"
        )
    if model.path:
        check_weights(Path(model.path), "model.path")
    elif not model.tokenizer:
        raise UserError(
            "model.tokenizer is empty: random weights need a tokenizer directory, or `build`"
        )
    _check_tokenizer(model)
    if config.trainer.policy.path:
        raise UserError("trainer.policy.path: the policy's checkpoint is model.path")


def model_shape(config: ModelConfig) -> dict[str, Any]:
    """The transformers configuration, of the checkpoint or as given; its sizes are positive integers."""
    where = "model.path" if config.path else "model.hf_config"
    described = read_shape(Path(config.path), "model.path") if config.path else config.hf_config
    return _checked(described, where)


def critic_shape(path: str) -> dict[str, Any]:
    """As `model_shape`, of the critic's own checkpoint."""
    key = "trainer.critic.path"
    return _checked(read_shape(Path(path), key), key)


def _checked(described: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = has_definition(described) or "model_type" not in described
    for name in REQUIRED if known else REQUIRED[:1]:
        if name not in described:
            raise UserError(f"{where}: '{name}' is missing")
    for name in SIZES:
        value = described.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}: {name}={value!r} must be a positive integer")
    return dict(described)


def read_shape(path: Path, key: str) -> dict[str, Any]:
    """`config.json` of a checkpoint directory."""
    if not path.is_dir():
        raise UserError(f"{key}: there is no directory '{path}'.{_where_from(path)}")
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{key}: '{path}' has no config.json: it is not a Hugging Face checkpoint")
    described = _read_json(file, key)
    if not isinstance(described, dict):
        raise UserError(f"{key}: '{file}' is broken: it holds no dictionary")
    return described


def check_layouts(config: RunConfig) -> None:
    """Each role's ranks divide the model. DeepSpeed's do not: `check_backend` says so."""
    if config.trainer.backend == "deepspeed":
        return
    shape = model_shape(config.model)
    _check_layout(config.trainer.policy.layout, "trainer.policy.layout", shape)
    if isinstance(config.algorithm, ValueLossConfig):
        critic = config.trainer.critic
        if critic.path:
            shape = critic_shape(critic.path)
        _check_layout(critic.layout, "trainer.critic.layout", shape)


def check_lengths(config: RunConfig) -> None:
    """A trace fits into the model, into one micro-batch, and has room for a prompt."""
    if config.algorithm.name == "value":
        return  # makes no traces; those that are stored are looked at (`check_value`)
    rollout = config.rollout
    cap = config.trainer.max_tokens_per_micro_batch
    context = rollout.max_context_tokens
    given = f"rollout.max_context_tokens={context}"
    for name, role in (("policy", config.trainer.policy), ("critic", config.trainer.critic)):
        holds = role.layout.capacity(cap)
        if context > holds:
            raise UserError(
                f"{given} is above the {holds} tokens of a micro-batch "
                f"(trainer.max_tokens_per_micro_batch={cap} times trainer.{name}.layout.context="
                f"{role.layout.context}, in multiples of {role.layout.multiple_of}): a trace must fit into "
                "one micro-batch, which context parallelism splits"
            )
    check_context(config)


def check_context(config: RunConfig) -> None:
    """A trace fits into the model and into an engine, and has room for a prompt."""
    rollout = config.rollout
    context = rollout.max_context_tokens
    given = f"rollout.max_context_tokens={context}"
    shape = model_shape(config.model)
    for name in ("max_position_embeddings", "n_positions"):
        if context > shape.get(name, context):
            raise UserError(f"{given} is above the model's {name}={shape[name]}")
    if not isinstance(config.algorithm, PpoConfig):
        return
    new = rollout.sampling.max_new_tokens
    if new >= context:
        raise UserError(
            f"rollout.sampling.max_new_tokens={new} leaves no room for a prompt in {given}"
        )
    pool = rollout.engine_args.get("max_total_tokens")
    if pool is not None and context > pool:
        raise UserError(f"{given} is above rollout.engine_args.max_total_tokens={pool}")


def _check_layout(layout: LayoutConfig, key: str, shape: Mapping[str, Any]) -> None:
    if shape["model_type"] == glm.MODEL_TYPE:
        # A vocabulary that is built for the run does not matter to the layout.
        glm_layout.check_layout(
            glm.GlmShape.from_hf({"vocab_size": 1} | dict(shape)), layout, key=key
        )
        return
    dense.refuse_glm_sizes(layout, key)
    check_divides(
        f"{key}.tensor",
        layout.tensor,
        shape,
        ("num_attention_heads", "num_key_value_heads", "intermediate_size"),
    )
    check_divides(f"{key}.pipeline", layout.pipeline, shape, ("num_hidden_layers",))
    if layout.sequence_parallel and layout.tensor == 1:
        raise UserError(f"{key}.sequence_parallel=true needs {key}.tensor of 2 or more")


def check_divides(key: str, size: int, shape: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """The message says which sizes would do for all of the fields."""
    present = {field: shape[field] for field in fields if shape.get(field)}
    fits = [n for n in range(1, max(size, 8) + 1) if all(v % n == 0 for v in present.values())]
    for field, value in present.items():
        if value % size:
            raise UserError(
                f"{key}={size} does not divide the model's {field}={value}; what does: "
                f"{', '.join(map(str, fits))}"
            )


def check_weights(path: Path, key: str) -> None:
    """A checkpoint directory has its safetensors files, all of them."""
    files = {p.name for p in path.glob("*.safetensors")}
    if not files:
        other = "; convert its .bin files first" if any(path.glob("*.bin")) else ""
        raise UserError(f"{key}: '{path}' has no .safetensors file{other}")
    if (path / INDEX).is_file():
        described = _read_json(path / INDEX, key)
        named = described.get("weight_map") if isinstance(described, dict) else None
        if not isinstance(named, dict):
            raise UserError(f"{key}: '{path / INDEX}' is broken: it has no weight_map")
        missing = sorted(set(named.values()) - files)
        if missing:
            raise UserError(f"{key}: '{path}' lacks {missing[0]}, which its index names")


def _check_tokenizer(model: ModelConfig) -> None:
    if model.tokenizer == "build":
        return
    key = "model.tokenizer" if model.tokenizer else "model.path"
    given = Path(model.tokenizer or model.path)
    if not (given / "tokenizer.json").is_file():
        raise UserError(
            f"{key}: '{given}' has no tokenizer.json. Give model.tokenizer the directory of a Hugging "
            "Face tokenizer, or `build` to train a small one on the environment's texts"
        )


def _read_json(file: Path, key: str) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: '{file}' is broken: {error}") from None


def _where_from(path: Path) -> str:
    """How the directory comes to be, where the name tells."""
    if path.name == "hf" and path.parent.name.startswith("sft_tiny"):
        return " Make it with `rlframe train experiment=sft_tiny`."
    if str(path).startswith("~"):
        return " The shell expands ~ only at the start of a word: write $HOME."
    if not path.is_absolute() and len(path.parts) == 2 and not path.parent.exists():
        return f" To download it: `hf download {path} --local-dir {path}`."
    return ""
