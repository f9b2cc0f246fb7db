"""A transformers model as what leaves it: names and tensors as in a checkpoint, and its config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rlframe.model_shapes.value_head import VALUE_BINS, value_labels
from trainer.deepspeed.engine import whole
from trainer.deepspeed.model import VALUE_HEAD, Critic, Policy
from trainer.ranks.spec import ModelSource
from trainer.weights import Exported, tensor_layout

DROPPED = (
    "torch_dtype",
    "dtype",
    "num_labels",
    "label2id",
    "id2label",
    "quantization_config",
    "architectures",
    VALUE_BINS,
)


def exported(model: Policy | Critic) -> Exported:
    """Before DeepSpeed shards the model: its tensors' shapes are read here.

    A critic is written as a sequence classifier with one label (or one a bin), its value head as `score.weight`.
    """
    layout = [
        tensor_layout(name, tensor.dtype, tensor.shape)
        for ours, tensor in _tensors(model)
        for name, tensor in _checkpoint_tensors(model, ours, tensor.detach().to("meta"))
    ]
    return Exported(layout, lambda: _export(model))


def described(model: Policy | Critic, source: ModelSource) -> dict[str, Any]:
    """`config.json` of what is written."""
    given: Mapping[str, Any] = source.hf_config
    if source.path:
        given = json.loads((Path(source.path) / "config.json").read_text())
    config = {name: value for name, value in given.items() if name not in DROPPED}
    parameter = next(model.parameters())
    config["dtype"] = str(parameter.dtype).removeprefix("torch.")
    if isinstance(model, Policy):
        return config | {"architectures": [type(model.model).__name__]}
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config["model_type"])
    bins = source.hf_config.get(VALUE_BINS)
    config |= {"id2label": value_labels(model.score.out_features)}
    config |= {} if bins is None else {VALUE_BINS: bins}
    return config | ({"architectures": [kind]} if kind else {})


def _tensors(model: Policy | Critic) -> Iterator[tuple[str, Tensor]]:
    """Of the transformers model inside, without a second name of a tied one: parameters, then buffers that
    a checkpoint has; of a critic, its value head last."""
    inner: nn.Module = model.model
    yield from inner.named_parameters()
    kept = inner.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in inner.named_buffers() if name in kept)
    if isinstance(model, Critic):
        yield VALUE_HEAD, model.score.weight


def _checkpoint_tensors(
    model: Policy | Critic, name: str, tensor: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint calls a tensor; one of fused experts is several there."""
    if name == VALUE_HEAD and isinstance(model, Critic):
        yield name, tensor
        return
    inner: Any = model.model
    prefix = f"{inner.base_model_prefix}." if isinstance(model, Critic) else ""
    for there, part in revert_weight_conversion(inner, {name: tensor}).items():
        yield (there if there.startswith(prefix) else prefix + there), part


@torch.no_grad()
def _export(model: Policy | Critic) -> Iterator[tuple[str, Tensor]]:
    for ours, tensor in _tensors(model):
        with whole([tensor] if isinstance(tensor, nn.Parameter) else []):
            if dist.get_rank() == 0:
                yield from _checkpoint_tensors(model, ours, tensor.detach())
