"""Options of Megatron and DeepSpeed that rlframe starts from where it differs from them; a passed-through one wins.

Imports nothing heavy: `rlframe explain` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRANSFORMER: Mapping[str, Any] = {
    "hidden_dropout": 0.0,
    # The fusions need Apex, or a compiler at run time.
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_dropout_fusion": False,
    "bias_activation_fusion": False,
    "persist_layer_norm": False,
    "moe_token_dispatcher_type": "alltoall",  # without experts, variable lengths ask for it
    "moe_router_bias_update_rate": 0.0,
    "cuda_graph_scope": [],
}


def ddp_defaults(optimizer_options: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron shards the state of Adam only."""
    return {
        "use_distributed_optimizer": optimizer_options.get("optimizer", "adam") == "adam",
        "grad_reduce_in_fp32": True,
    }


def deepspeed_defaults(*, half: bool, on_cpu: bool) -> dict[str, Any]:
    """Optimizer and gradients are sharded, parameters are not (ZeRO 2). `half`: the model is in bfloat16."""
    zero: dict[str, Any] = {"stage": 2}
    if on_cpu:
        # DeepSpeed's own make buffers of 2 GB, in every backward pass.
        zero |= {"reduce_bucket_size": 20_000_000, "allgather_bucket_size": 20_000_000}
    accumulated: dict[str, Any] = {"data_types": {"grad_accum_dtype": "fp32"}} if half else {}
    return {"zero_optimization": zero, **accumulated}
