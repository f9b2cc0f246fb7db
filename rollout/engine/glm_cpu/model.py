"""What SGLang's registry finds: GLM-5 under a name by which the server chooses nothing that needs CUDA.

By the name `GlmMoeDsaForCausalLM` SGLang 0.5.20 takes pages of 64, an FP8 pool of index keys and its "dsa"
backend, none of which runs on a CPU. So the server is told `ALIAS`, a latent-attention model without an
indexer (`server_overrides`), and the model code alone gets its true name back. Importing this module, which
the registry does in each scheduler before pools and backends exist, puts the other parts in their places.
"""

from __future__ import annotations

import copy
from typing import Any

from sglang.srt.layers.attention import attention_registry
from sglang.srt.layers.rotary_embedding import factory
from sglang.srt.mem_cache.pool_host import common
from sglang.srt.models import deepseek_v2
from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)
from sglang.srt.models.glm4_moe import GlmMoeDsaForCausalLM

from rollout.engine.glm_cpu.attention import TorchSparseAttention
from rollout.engine.glm_cpu.indexer import TorchIndexer

BACKEND = "torch_native"


class DeepseekV2ForCausalLM(GlmMoeDsaForCausalLM):  # type: ignore[misc]
    """Its own name is the alias (`rollout.engine.arguments.GLM_ALIAS`)."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        config = copy.copy(config)
        config.architectures = [GlmMoeDsaForCausalLM.__name__]
        super().__init__(config, *args, **kwargs)


def _rope(original: Any) -> Any:
    """SGLang's rope for CPUs knows only DeepSeek's scaled one; a plain one is everybody's."""

    def get_rope_cpu(
        head_size: int,
        rotary_dim: int,
        max_position: int,
        base: float,
        is_neox_style: bool = True,
        rope_scaling: Any = None,
        dtype: Any = None,
        partial_rotary_factor: float = 1.0,
        device: Any = None,
    ) -> Any:
        common = (head_size, rotary_dim, max_position, base, is_neox_style, rope_scaling, dtype)
        if rope_scaling:
            return original(*common, partial_rotary_factor, device)
        return factory.get_rope(*common, partial_rotary_factor)

    return get_rope_cpu


def _absorbed(attention: Any, forward_batch: Any) -> Any:
    """The pool holds latents, which only absorbed attention reads."""
    return AttnForwardMethod.MLA


def _unpinned(
    dims: tuple[int, ...], dtype: Any, device: str, pin_memory: bool, allocator: Any, *_: Any
) -> Any:
    """Host memory for routed experts, which SGLang pins for CUDA."""
    return allocator.allocate(dims, dtype=dtype, device=device)


common.ALLOC_MEMORY_FUNCS["cpu"] = _unpinned
factory.get_rope_cpu = _rope(factory.get_rope_cpu)
AttentionBackendRegistry.register(BACKEND, _absorbed)
attention_registry.register_attention_backend(BACKEND)(TorchSparseAttention)
deepseek_v2.Indexer = TorchIndexer
EntryClass = DeepseekV2ForCausalLM
