"""Which tensors a served model must be given: names, shapes and dtypes, from the model's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlframe import weights
from rlframe.types import WeightManifest

SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

ALWAYS_FLOAT32 = ".e_score_correction_bias"
"""A router's bias: bfloat16 would make its small steps vanish."""

Shape = tuple[int, ...]
Signature = tuple[Shape, str]
"""Shape and dtype."""


def signatures(model_directory: str, dtype: str) -> dict[str, Signature]:
    """By name. From the checkpoint beside `config.json`, or where there is none, from transformers'
    own model of that configuration, made without memory."""
    directory = Path(model_directory)
    if any(directory.glob("*.safetensors")):
        shapes = {n: t.shape for n, t in weights.open_directory(directory).items()}
    else:
        shapes = _shapes_from_config(directory)
    if json.loads((directory / "config.json").read_text()).get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)  # some tied checkpoints hold a copy; it is never served
    return {
        name: (shape, "F32" if name.endswith(ALWAYS_FLOAT32) else SAFETENSORS_DTYPES[dtype])
        for name, shape in shapes.items()
    }


def _shapes_from_config(directory: Path) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    in_memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = dict(_on_disk(in_memory))
    for layer in range(getattr(config, "num_nextn_predict_layers", 0) or 0):
        shapes |= _mtp_layer(shapes, config.num_hidden_layers + layer, config.hidden_size)
    return shapes


def _on_disk(in_memory: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """transformers 5 holds all experts of a layer in one tensor; files hold each by itself."""
    for name, shape in in_memory.items():
        prefix, _, kind = name.rpartition(".experts.")
        if kind not in ("gate_up_proj", "down_proj"):
            yield name, shape
            continue
        experts, rows, columns = shape
        for expert in range(experts):
            each = f"{prefix}.experts.{expert}"
            if kind == "down_proj":
                yield f"{each}.down_proj.weight", (rows, columns)
            else:
                yield f"{each}.gate_proj.weight", (rows // 2, columns)
                yield f"{each}.up_proj.weight", (rows // 2, columns)


def _mtp_layer(shapes: Mapping[str, Shape], layer: int, hidden: int) -> dict[str, Shape]:
    """GLM-5's and DeepSeek-V3's, which transformers leaves out: as the last layer, with an indexer of its
    own where there are any, and four tensors more."""
    last, ours = f"model.layers.{layer - 1}.", f"model.layers.{layer}."
    made = {ours + n.removeprefix(last): s for n, s in shapes.items() if n.startswith(last)}
    first = "model.layers.0."
    made |= {
        ours + n.removeprefix(first): s
        for n, s in shapes.items()
        if n.startswith(first + "self_attn.indexer.")
    }
    norms = {f"{ours}{n}.weight": (hidden,) for n in ("enorm", "hnorm", "shared_head.norm")}
    return {**made, **norms, f"{ours}eh_proj.weight": (hidden, 2 * hidden)}


def differences(expected: Mapping[str, Signature], manifest: WeightManifest) -> list[str]:
    """What a manifest has too little, too much, or otherwise than the model."""
    given = manifest.tensors
    problems = [f"'{name}' is missing" for name in sorted(expected.keys() - given.keys())]
    problems += [f"'{name}' is not in the model" for name in sorted(given.keys() - expected.keys())]
    for name in sorted(expected.keys() & given.keys()):
        shape, dtype = expected[name]
        spec = given[name]
        if (spec.shape, spec.dtype) != (shape, dtype):
            problems.append(
                f"'{name}' is {spec.dtype} {list(spec.shape)}, the model has {dtype} {list(shape)}"
            )
    return problems
