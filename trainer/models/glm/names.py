"""The tensors of a GLM-5 layer: `model.layers.N.*` of the Hugging Face checkpoint."""

from __future__ import annotations

from rlframe.model_shapes.glm import GlmShape
from trainer.models.dense_names import mlp_entries
from trainer.models.hf_names import Cut, Entry


def glm_layer_entries(
    shape: GlmShape,
    *,
    prefix: str,
    layer: int,
    expert_ranks: int = 1,
    expert_rank: int | None = None,
) -> tuple[Entry, ...]:
    """Of layer `layer` of the whole model, whose parameters begin with `prefix` on its rank.

    With `expert_rank`, only that expert-parallel rank's experts (of `expert_ranks`) are among them.
    Layer `shape.layers` is the MTP layer's decoder layer.
    """
    theirs = f"model.layers.{layer}."
    hidden = shape.hidden_size

    def norm(name: str, tensor: str) -> Entry:
        return Entry(
            f"{prefix}{name}.weight", (f"{theirs}{tensor}.weight",), ((hidden,),), Cut.WHOLE
        )

    if shape.is_sparse(layer):
        mlp = _expert_entries(
            shape, f"{prefix}mlp.", f"{theirs}mlp.", ranks=expert_ranks, only=expert_rank
        )
    else:
        mlp = mlp_entries(f"{prefix}mlp.", f"{theirs}mlp.", hidden=hidden, ffn=shape.ffn_size)
    owns_indexer = layer >= shape.layers or shape.indexer_types[layer]
    return (
        norm("input_layernorm", "input_layernorm"),
        *_attention_entries(shape, f"{prefix}self_attention.", f"{theirs}self_attn."),
        *(_indexer_entries(shape, prefix, theirs) if owns_indexer else ()),
        norm("pre_mlp_layernorm", "post_attention_layernorm"),
        *mlp,
    )


def mtp_entries(
    shape: GlmShape, *, expert_ranks: int = 1, expert_rank: int | None = None
) -> tuple[Entry, ...]:
    """Of the MTP layer, which a checkpoint stores as one more layer; it has no embedding or head."""
    theirs, hidden = f"model.layers.{shape.layers}.", shape.hidden_size
    own = (
        ("enorm", "enorm", (hidden,)),
        ("hnorm", "hnorm", (hidden,)),
        ("eh_proj", "eh_proj", (hidden, 2 * hidden)),
        ("final_layernorm", "shared_head.norm", (hidden,)),
    )
    return (
        *(
            Entry(f"mtp_layer.{name}.weight", (f"{theirs}{tensor}.weight",), (size,), Cut.WHOLE)
            for name, tensor, size in own
        ),
        *glm_layer_entries(
            shape,
            prefix="mtp_layer.layer.",
            layer=shape.layers,
            expert_ranks=expert_ranks,
            expert_rank=expert_rank,
        ),
    )


def _attention_entries(shape: GlmShape, ours: str, theirs: str) -> tuple[Entry, ...]:
    hidden, heads = shape.hidden_size, shape.heads
    rows: tuple[tuple[str, str, tuple[int, ...], Cut], ...] = (
        ("linear_q_down_proj", "q_a_proj", (shape.query_rank, hidden), Cut.WHOLE),
        ("q_layernorm", "q_a_layernorm", (shape.query_rank,), Cut.WHOLE),
        ("linear_q_up_proj", "q_b_proj", (heads * shape.head_dim, shape.query_rank), Cut.ROWS),
        ("linear_kv_down_proj", "kv_a_proj_with_mqa", (shape.row_dim, hidden), Cut.WHOLE),
        ("kv_layernorm", "kv_a_layernorm", (shape.latent_rank,), Cut.WHOLE),
        (
            "linear_kv_up_proj",
            "kv_b_proj",
            (heads * (shape.nope_dim + shape.value_dim), shape.latent_rank),
            Cut.ROWS,
        ),
        ("linear_proj", "o_proj", (hidden, heads * shape.value_dim), Cut.COLUMNS),
    )
    return tuple(
        Entry(f"{ours}{name}.weight", (f"{theirs}{tensor}.weight",), (size,), how)
        for name, tensor, size, how in rows
    )


def _indexer_entries(shape: GlmShape, prefix: str, theirs: str) -> tuple[Entry, ...]:
    hidden, queries = shape.hidden_size, shape.index_heads * shape.index_dim
    rows: tuple[tuple[str, str, tuple[int, ...]], ...] = (
        ("linear_q.weight", "wq_b.weight", (queries, shape.query_rank)),
        ("linear_k.weight", "wk.weight", (shape.index_dim, hidden)),
        ("k_norm.weight", "k_norm.weight", (shape.index_dim,)),
        ("k_norm.bias", "k_norm.bias", (shape.index_dim,)),
        ("linear_weights.weight", "weights_proj.weight", (shape.index_heads, hidden)),
    )
    return tuple(
        Entry(
            f"{prefix}self_attention.indexer.{name}",
            (f"{theirs}self_attn.indexer.{tensor}",),
            (size,),
            Cut.WHOLE,
        )
        for name, tensor, size in rows
    )


def _expert_entries(
    shape: GlmShape, ours: str, theirs: str, *, ranks: int, only: int | None
) -> tuple[Entry, ...]:
    hidden, ffn = shape.hidden_size, shape.expert_ffn_size
    per_rank = shape.experts // ranks
    entries = [
        Entry(
            f"{ours}router.weight", (f"{theirs}gate.weight",), ((shape.experts, hidden),), Cut.WHOLE
        ),
        Entry(
            f"{ours}router.expert_bias",
            (f"{theirs}gate.e_score_correction_bias",),
            ((shape.experts,),),
            Cut.WHOLE,
            keeps_float32=True,
        ),
    ]
    for expert in range(shape.experts):
        rank, local = divmod(expert, per_rank)
        if only is None or only == rank:
            prefix = f"{ours}experts.local_experts.{local}."
            entries.extend(
                _one_expert(prefix, f"{theirs}experts.{expert}.", hidden, ffn, rank=rank)
            )
    if shape.shared_experts:
        entries.extend(
            mlp_entries(
                f"{ours}shared_experts.",
                f"{theirs}shared_experts.",
                hidden=hidden,
                ffn=ffn * shape.shared_experts,
            )
        )
    return tuple(entries)


def _one_expert(ours: str, theirs: str, hidden: int, ffn: int, *, rank: int) -> tuple[Entry, Entry]:
    return (
        Entry(
            f"{ours}linear_fc1.weight",
            (f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight"),
            ((ffn, hidden), (ffn, hidden)),
            Cut.EXPERT,
            expert_rank=rank,
        ),
        Entry(
            f"{ours}linear_fc2.weight",
            (f"{theirs}down_proj.weight",),
            ((hidden, ffn),),
            Cut.EXPERT,
            expert_rank=rank,
        ),
    )
