"""A Qwen3-type dense model, made of megatron-core's own layers."""

from __future__ import annotations

from functools import partial

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from rlframe.model_shapes.dense import DenseShape
from trainer.models.asked_layer import AskedLayer
from trainer.models.layers import RMSNorm, SwiGlu
from trainer.models.packed_attention import PackedAttention


def dense_specs(
    shape: DenseShape, *, layers: int, asks_early: bool = False
) -> TransformerBlockSubmodules:
    """Megatron's local layer, with our norm, activation and packed attention.

    `asks_early`: the last of these layers is the model's last, an `AskedLayer`.
    """
    kinds = [TransformerLayer] * (layers - 1) + [AskedLayer if asks_early else TransformerLayer]
    return TransformerBlockSubmodules(
        layer_specs=[_layer_spec(shape, kind) for kind in kinds], layer_norm=RMSNorm
    )


def _layer_spec(shape: DenseShape, module: type[TransformerLayer]) -> ModuleSpec:
    return ModuleSpec(
        module=module,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=partial(PackedAttention, rope_theta=shape.rope_theta),
                    linear_proj=RowParallelLinear,
                    q_layernorm=RMSNorm,
                    k_layernorm=RMSNorm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp_spec(),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def mlp_spec() -> ModuleSpec:
    """A SwiGLU feed-forward part, split over tensor-parallel ranks."""
    return ModuleSpec(module=MLP, submodules=mlp_parts())


def mlp_parts() -> MLPSubmodules:
    return MLPSubmodules(
        linear_fc1=ColumnParallelLinear,
        linear_fc2=RowParallelLinear,
        activation_func=SwiGlu,
    )
