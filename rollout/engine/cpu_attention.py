"""SGLang's torch-native attention backend, in few calls for a batch instead of one a sequence.

SGLang 0.5.20's own, the only one for CPUs without AMX, loops over the sequences in Python, which takes most of a
decode step, and computes the queries of a cached prefix again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sglang.srt.layers.attention import attention_registry
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch import Tensor

from rollout.engine.padded_attention import attend

NAME = "torch_native"
"""SGLang's own: its checks of the other options know it."""
FEW = 2
"""Sequences that SGLang's loop decodes faster."""


class BatchedTorchAttention(TorchNativeAttnBackend):  # type: ignore[misc]
    """Encoders and cross-attention are its parent's."""

    def _run_sdpa_forward_decode(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        *cached, kv_lens, encoder_lens = args
        if encoder_lens is not None or len(kv_lens) <= FEW:
            return super()._run_sdpa_forward_decode(query, *args, **kwargs)
        return _attended(query, [*cached, kv_lens], torch.ones_like(kv_lens), kwargs)

    def _run_sdpa_forward_extend(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        *cached, _, q_lens, encoder_lens = args
        if encoder_lens is not None or not kwargs["causal"]:
            return super()._run_sdpa_forward_extend(query, *args, **kwargs)
        return _attended(query, cached, q_lens, kwargs)


def _attended(
    query: Tensor, cached: Sequence[Tensor], q_lens: Tensor, options: Mapping[str, Any]
) -> Tensor:
    output, keys, values, req_to_token, pool, kv_lens = cached
    attend(
        query,
        output,
        keys,
        values,
        req_to_token,
        pool,
        kv_lens,
        q_lens,
        scale=options["scaling"],
        window=options["sliding_window_size"],
    )
    return output


def register() -> None:
    """In this process and those that it forks."""
    attention_registry.register_attention_backend(NAME)(BatchedTorchAttention)
