"""Options that pass through to SGLang, sglang-router, Megatron-core, DeepSpeed, transformers and Ray by their
own names, checked against what is installed."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlframe.config import owned
from rlframe.config.library_options import Library, Option, options_of
from rlframe.config.values import shown
from rlframe.errors import UserError, nearest

SGLANG = Library(
    "sglang",
    "sglang",
    ("srt/arg_groups/fields/*.py",),
    choice_lists="srt/arg_groups/choices.py",
    owned=owned.SGLANG,
    fixed=owned.SGLANG_FIXED,
)
TEACHER_SGLANG = replace(SGLANG, owned=owned.TEACHER_SGLANG, fixed=owned.TEACHER_SGLANG_FIXED)
ROUTER = Library(
    "sglang-router",
    "sglang_router",
    ("router_args.py",),
    ("RouterArgs",),
    owned=owned.ROUTER,
    fixed=owned.ROUTER_FIXED,
)
TRANSFORMER = Library(
    "megatron-core",
    "megatron.core",
    ("transformer/transformer_config.py", "model_parallel_config.py"),
    ("TransformerConfig", "ModelParallelConfig"),
    owned=owned.TRANSFORMER,
    fixed=owned.TRANSFORMER_FIXED,
)
OPTIMIZER = Library(
    "megatron-core",
    "megatron.core",
    ("optimizer/optimizer_config.py",),
    ("OptimizerConfig",),
    owned=owned.OPTIMIZER,
)
DDP = Library(
    "megatron-core",
    "megatron.core",
    ("distributed/distributed_data_parallel_config.py",),
    ("DistributedDataParallelConfig",),
)
GLM_FIELDS = (
    "scoring_func",
    "topk_method",
    "moe_layer_freq",
    "mlp_layer_types",
    "num_nextn_predict_layers",
    "rope_interleave",
    "indexer_rope_interleave",
    "index_topk_freq",
    "index_skip_topk_offset",
    "index_topk_pattern",
    "index_share_for_mtp_iteration",
)
"""Fields of GLM-5's config.json that the pinned transformers does not declare; SGLang and we read them."""
HF_CONFIG = Library(
    "transformers",
    "transformers",
    (
        "models/qwen3/configuration_qwen3.py",
        "models/glm_moe_dsa/configuration_glm_moe_dsa.py",
        "configuration_utils.py",
    ),
    ("Qwen3Config", "GlmMoeDsaConfig", "PreTrainedConfig"),
    extra=("model_type", "rope_theta", "rope_scaling", *GLM_FIELDS),
    owned=owned.HF_CONFIG,
)
DEEPSPEED = Library(
    "deepspeed",
    "deepspeed",
    ("runtime/constants.py", "runtime/**/config.py", "runtime/precision_config.py", "*/config.py"),
    dictionary="param_dict",
    extra=("comms_logger", "communication_data_type", "train_micro_batch_size_per_gpu"),
    owned=owned.DEEPSPEED,
    fixed=owned.DEEPSPEED_FIXED,
)
ZERO = Library("deepspeed", "deepspeed", ("runtime/zero/config.py",), ("DeepSpeedZeroConfig",))
OFFLOAD = {
    name: Library("deepspeed", "deepspeed", ("runtime/zero/offload_config.py",), (kind,))
    for name, kind in (
        ("offload_optimizer", "DeepSpeedZeroOffloadOptimizerConfig"),
        ("offload_param", "DeepSpeedZeroOffloadParamConfig"),
    )
}
RUNTIME_ENV = Library(
    "ray", "ray", ("runtime_env/runtime_env.py",), ("RuntimeEnv",), name_set="known_fields"
)
PASSTHROUGH: Mapping[str, Library] = {
    "model.hf_config": HF_CONFIG,
    "rollout.engine_args": SGLANG,
    "rollout.router_args": ROUTER,
    "teachers.engine_args": TEACHER_SGLANG,
    **{f"trainer.{role}.transformer": TRANSFORMER for role in ("policy", "critic")},
    **{f"trainer.{role}.optimizer": OPTIMIZER for role in ("policy", "critic")},
    **{f"trainer.{role}.ddp": DDP for role in ("policy", "critic")},
    **{f"trainer.{role}.deepspeed": DEEPSPEED for role in ("policy", "critic")},
    "cluster.runtime_env": RUNTIME_ENV,
}
"""Which knob holds whose options."""
SECTIONS: Mapping[str, Library] = {
    f"trainer.{role}.deepspeed.zero_optimization{below}": library
    for role in ("policy", "critic")
    for below, library in (("", ZERO), *((f".{name}", part) for name, part in OFFLOAD.items()))
}
"""Options that are dictionaries of options again."""


def library_of(key: str) -> Library:
    """Whose options stand under a pass-through knob, or under a section of one."""
    return PASSTHROUGH[key] if key in PASSTHROUGH else SECTIONS[key]


def check_options(key: str, given: Mapping[str, Any]) -> None:
    """Raises UserError for an option that the library lacks, that follows from a key of rlframe's, that
    nobody may set, or that is of a wrong type."""
    library = library_of(key)
    for name, value in given.items():
        where = f"{key}.{name}={shown(value)}"
        option = find_option(key, name)
        if name in library.owned:
            raise UserError(f"{where}: set {owning_key(key, name)} instead, it follows from that")
        if name in library.fixed:
            raise UserError(f"{where}: it can't be set: {library.fixed[name]}")
        if option.choices and value is not None and value not in option.choices:
            choices = [str(choice) for choice in option.choices]
            raise UserError(
                f"{where}: {library.shown} takes one of {', '.join(choices)}."
                + (hint if "mean" in (hint := nearest(str(value), choices)) else "")
            )
        if option.type_text and not _accepts(_parsed(option), value):
            raise UserError(
                f"{where}: {library.shown} takes {option.type_text} (default {option.default_text}), "
                f"not {type(value).__name__}"
            )
        if f"{key}.{name}" in SECTIONS and value is not None:
            if not isinstance(value, dict):
                raise UserError(f"{where}: it is a dictionary of options")
            check_options(f"{key}.{name}", value)


def find_option(key: str, name: str) -> Option:
    """The option `name` of the library behind the knob `key`; UserError with the nearest if there is none."""
    library = library_of(key)
    options = options_of(library)
    if name in options:
        return options[name]
    plain = name.lstrip("-").replace("-", "_")
    meant = [o.name for o in options.values() if plain == o.name or plain in o.aliases]
    hint = f" Its name is '{meant[0]}'." if meant else nearest(name, options)
    raise UserError(f"{key}.{name}: {library.shown} has no option '{name}'.{hint}")


def owning_key(key: str, name: str) -> str:
    """The key of rlframe's that the option follows from."""
    return library_of(key).owned[name].format(role=key.split(".")[1])


def _parsed(option: Option) -> ast.expr:
    return ast.parse(option.type_text, mode="eval").body


_SIMPLE: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
    "dict": (dict,),
    "list": (list,),
}


def _accepts(kind: ast.expr, value: Any) -> bool:
    """The value fits the annotation, as far as the annotation is simple; otherwise the library decides."""
    text = ast.unparse(kind)
    if text == "bool" or (isinstance(value, bool) and text in _SIMPLE):
        return isinstance(value, bool) and text == "bool"
    if text in _SIMPLE:
        return isinstance(value, _SIMPLE[text])
    if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
        return _accepts(ast.parse(kind.value, mode="eval").body, value)
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return _accepts(kind.left, value) or _accepts(kind.right, value)
    if isinstance(kind, ast.Subscript):
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        return _accepts_generic(ast.unparse(kind.value).split(".")[-1], inner, value)
    return True


def _accepts_generic(outer: str, inner: list[ast.expr], value: Any) -> bool:
    match outer:
        case "Optional":
            return value is None or _accepts(inner[0], value)
        case "Union":
            return any(_accepts(part, value) for part in inner)
        case "Literal":
            return value in [ast.literal_eval(part) for part in inner]
        case "List" | "list":
            return isinstance(value, list) and all(_accepts(inner[0], item) for item in value)
        case "Dict" | "dict":
            return isinstance(value, dict)
    return True
