"""The tensors of a Qwen3-type layer."""

from __future__ import annotations

from rlframe.model_shapes.dense import DenseShape
from trainer.models.hf_names import Cut, Entry


def dense_layer_entries(shape: DenseShape, *, prefix: str, layer: int) -> tuple[Entry, ...]:
    """Of layer `layer` of the whole model, whose parameters begin with `prefix` on its rank."""
    theirs = f"model.layers.{layer}."
    attention, mlp = theirs + "self_attn.", theirs + "mlp."
    hidden, ffn, head = shape.hidden_size, shape.ffn_size, shape.head_dim
    queries, keys = shape.heads * head, shape.kv_heads * head

    def whole(parameter: str, tensor: str, size: int) -> Entry:
        return Entry(prefix + parameter, (tensor,), ((size,),), Cut.WHOLE)

    return (
        whole("input_layernorm.weight", f"{theirs}input_layernorm.weight", hidden),
        Entry(
            f"{prefix}self_attention.linear_qkv.weight",
            tuple(f"{attention}{name}_proj.weight" for name in "qkv"),
            ((queries, hidden), (keys, hidden), (keys, hidden)),
            Cut.QKV,
            groups=shape.kv_heads,
        ),
        whole("self_attention.q_layernorm.weight", f"{attention}q_norm.weight", head),
        whole("self_attention.k_layernorm.weight", f"{attention}k_norm.weight", head),
        Entry(
            f"{prefix}self_attention.linear_proj.weight",
            (f"{attention}o_proj.weight",),
            ((hidden, queries),),
            Cut.COLUMNS,
        ),
        whole("pre_mlp_layernorm.weight", f"{theirs}post_attention_layernorm.weight", hidden),
        *mlp_entries(f"{prefix}mlp.", mlp, hidden=hidden, ffn=ffn),
    )


def mlp_entries(prefix: str, theirs: str, *, hidden: int, ffn: int) -> tuple[Entry, Entry]:
    """A SwiGLU feed-forward part, split over tensor-parallel ranks."""
    return (
        Entry(
            f"{prefix}linear_fc1.weight",
            (f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight"),
            ((ffn, hidden), (ffn, hidden)),
            Cut.GATE_UP,
        ),
        Entry(
            f"{prefix}linear_fc2.weight",
            (f"{theirs}down_proj.weight",),
            ((hidden, ffn),),
            Cut.COLUMNS,
        ),
    )
