"""A causal language model of transformers as a policy or a critic.

Only the asked-for positions go through the output layer, so a prompt costs no logits. Dropout is off:
the policy that learns must be the one that sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from rlframe.errors import UserError
from rlframe.model_shapes.value_head import value_outputs
from trainer.models.hf_files import HfCheckpoint
from trainer.random_weights import VALUE_HEAD_SCALE, seeded_normal
from trainer.ranks.spec import RankSpec

VALUE_HEAD = "score.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLASH = "flash_attention"


class Policy(nn.Module):
    """`forward` gives the logits [P, vocabulary] at P of the [n, L] positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise UserError(f"{type(model).__name__} has no output embeddings: it is no policy")
        head.register_forward_pre_hook(self._pick)
        self._positions: Tensor | None = None

    def forward(self, input_ids: Tensor, position_ids: Tensor | None, positions: Tensor) -> Tensor:
        self._positions = positions
        logits = self.model(**inputs(input_ids, position_ids)).logits
        return logits.reshape(len(positions), -1)  # type: ignore[no-any-return]

    def _pick(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        """Runs in front of the output layer; whatever the model does to its logits stays the model's."""
        hidden: Tensor = given[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._positions].unsqueeze(0),)


class Critic(nn.Module):
    """`forward` gives float32 values [P] at P of the [n, L] positions, or logits [P, K] over bins of values."""

    def __init__(self, model: nn.Module, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.model = model
        self.score = nn.Linear(hidden_size, outputs, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None, positions: Tensor) -> Tensor:
        hidden = self.model(**inputs(input_ids, position_ids)).last_hidden_state
        asked = hidden.reshape(-1, hidden.shape[-1])[positions]
        given: Tensor = self.score(asked).float()
        return given.squeeze(-1) if self.score.out_features == 1 else given


def inputs(input_ids: Tensor, position_ids: Tensor | None) -> dict[str, Any]:
    """No mask: tokens see only what is left of them, and padding is on the right."""
    given: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    return given if position_ids is None else given | {"position_ids": position_ids}


def build(spec: RankSpec) -> Policy | Critic:
    """On the CPU, with weights from `spec.model`. UserError for a model or a checkpoint that does not fit."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source, role = spec.model, spec.role
    config = read_config(source.path, source.hf_config)
    switch_off_dropout(config)
    dtype = DTYPES[source.dtype]
    kind = AutoModelForCausalLM if role == "policy" else AutoModel
    options = {"dtype": dtype, "attn_implementation": attention(spec)}
    torch.manual_seed(source.seed)
    try:
        if source.path:
            inner = _load(kind, source.path, config, role, options)
        else:
            inner = kind.from_config(config, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"transformers can't build this model: {_first_line(error)}") from error
    if spec.config.gradient_checkpointing:
        enable: Any = inner.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if role == "policy":
        return Policy(inner)
    outputs = value_outputs(source.hf_config)
    critic = Critic(inner, config.get_text_config().hidden_size, outputs)
    _fill_value_head(critic, source.path, source.seed)
    return critic.to(dtype)


def read_config(path: str, hf_config: Mapping[str, Any]) -> PreTrainedConfig:
    """Of the checkpoint where there is one: a critic's may be another than the run's model."""
    try:
        if path:
            return AutoConfig.from_pretrained(path, local_files_only=True)
        return AutoConfig.for_model(**{k: v for k, v in hf_config.items() if k != "torch_dtype"})
    except (ValueError, KeyError) as error:
        raise UserError(
            f"transformers {transformers.__version__} has no model of type "
            f"'{hf_config.get('model_type')}': {_first_line(error)}"
        ) from error


def switch_off_dropout(config: PreTrainedConfig) -> None:
    """Rates have `drop` in their names in every model of transformers (`attention_dropout`, `embd_pdrop`)."""
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def attention(spec: RankSpec) -> str | None:
    """The knob's; `auto`: variable-length kernels where they are, else transformers' own choice."""
    given = spec.config.attention
    if given != "auto":
        return given
    has_flash = transformers.utils.is_flash_attn_2_available()
    half = spec.model.dtype == "bfloat16"
    return "flash_attention_2" if spec.device == "cuda" and has_flash and half else None


def packs_rows(model: nn.Module) -> bool:
    """Whether attention keeps rows apart that stand in one row end to end, at their cost alone."""
    return str(model.config._attn_implementation).startswith(FLASH)  # type: ignore[union-attr]


def freeze_attention(model: nn.Module) -> None:
    """Attention's weights stay as they are. UserError where none is found by its class's name."""
    layers = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    if not layers:
        raise UserError(
            "trainer.critic.freeze_attention=true, but no module of this model is called ...Attention"
        )
    for layer in layers:
        layer.requires_grad_(False)


def _load(
    kind: Any, path: str, config: PreTrainedConfig, role: str, options: dict[str, Any]
) -> nn.Module:
    try:
        model, loading = kind.from_pretrained(
            path, config=config, output_loading_info=True, local_files_only=True, **options
        )
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    wrong = [f"{path}: tensor '{name}' is missing." for name in sorted(loading["missing_keys"])]
    if (
        role == "policy"
    ):  # a critic's backbone leaves a policy's output layer, or its own value head
        extra = sorted(loading["unexpected_keys"])
        wrong += [f"{path}: tensor '{name}' has no place in this model." for name in extra]
    wrong += [
        f"{path}: tensor '{name}' has values that are not finite."
        for name, tensor in model.named_parameters()
        if not tensor.isfinite().all()
    ]
    if wrong:
        raise UserError("\n".join(wrong))
    return model  # type: ignore[no-any-return]


@torch.no_grad()
def _fill_value_head(critic: Critic, path: str, seed: int) -> None:
    """The checkpoint's, or a new one."""
    weight = critic.score.weight
    checkpoint = HfCheckpoint(path) if path else None
    if checkpoint is not None and VALUE_HEAD in checkpoint.shapes:
        checked = {VALUE_HEAD: tuple(weight.shape)}
        checkpoint.check(checked, unused=frozenset(checkpoint.shapes))
        weight.copy_(checkpoint.read(VALUE_HEAD))
        return
    std = VALUE_HEAD_SCALE * weight.shape[1] ** -0.5
    weight.copy_(seeded_normal(VALUE_HEAD, tuple(weight.shape), std=std, seed=seed))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
