"""A model's last layer, where only what is asked for goes on after attention.

Nothing reads the last layer's output at a position without logits, so its feed-forward part and the norms after it
leave those positions out: of a two-layer model that reads prompts of 42 tokens and answers with 8, a fifth of an update's time.
Every position that is left goes through the same row-wise operations as it would among the others.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


class AskedLayer(TransformerLayer):  # type: ignore[misc]
    """Not with sequence parallelism (a rank has some positions' states only), nor where a layer's router counts
    tokens or MTP reads them all."""

    def _forward_attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        hidden_states, context = super()._forward_attention(*args, **kwargs)
        return kwargs["packed_seq_params"].asked(hidden_states), context
