"""How a GLM-5 model may be spread over ranks, and which layers each pipeline part has."""

from __future__ import annotations

from collections.abc import Iterator

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from rlframe.model_shapes.glm import GlmShape
from rlframe.model_shapes.pipeline import Chunk, chunks_of, most_even


def glm_chunks(shape: GlmShape, layout: LayoutConfig) -> tuple[Chunk, ...]:
    """The parts of the pipeline, `layout.pipeline_layers` or as even as they can be.

    Without `pipeline_layers` every part begins with a layer that owns an indexer, where there are enough
    of those; else the sizes differ by one at most. A part that begins with a layer that shares ids gets
    them from the part before, along with the hidden states (index_top_k * 4 bytes a token).
    """
    count = layout.pipeline * layout.virtual_pipeline
    if layout.pipeline_layers:
        return chunks_of(_sizes(layout.pipeline_layers))
    starts = [layer for layer, full in enumerate(shape.indexer_types) if full]
    sizes = most_even(shape.layers, count, starts)
    if sizes is None:
        small, larger = divmod(shape.layers, count)
        sizes = tuple(small + (i < larger) for i in range(count))
    return chunks_of(sizes)


def check_layout(shape: GlmShape, layout: LayoutConfig, *, key: str) -> None:
    """Raises UserError, with what would do, for a layout that cannot hold the model."""
    for problem in (*_division(shape, layout, key), *_pipeline(shape, layout, key)):
        raise UserError(problem)


def _division(shape: GlmShape, layout: LayoutConfig, key: str) -> Iterator[str]:
    split = {
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_size,
        "n_shared_experts * moe_intermediate_size": shape.expert_ffn_size * shape.shared_experts,
    }
    for name, size in split.items():
        if size % layout.tensor:
            fits = [n for n in range(1, shape.heads + 1) if not any(s % n for s in split.values())]
            yield (
                f"{key}.tensor={layout.tensor} does not divide the model's {name}={size}; what does: "
                f"{_listed(fits)}"
            )
    if layout.sequence_parallel and layout.tensor == 1:
        yield f"{key}.sequence_parallel=true needs {key}.tensor of 2 or more"
    if layout.tensor > 1 and not layout.sequence_parallel and shape.dense_layers < shape.layers:
        yield (
            f"{key}.tensor={layout.tensor} needs {key}.sequence_parallel=true: each rank routes its own "
            f"tokens to the experts. Or set {key}.tensor=1 and {key}.expert={layout.tensor}."
        )
    if shape.experts % layout.expert:
        fits = [n for n in range(1, shape.experts + 1) if shape.experts % n == 0]
        yield (
            f"{key}.expert={layout.expert} does not divide the model's n_routed_experts="
            f"{shape.experts}; what does: {_listed(fits)}"
        )
    ranks = layout.data * layout.tensor * layout.context
    if ranks % layout.expert:
        fits = [n for n in range(1, ranks + 1) if ranks % n == 0 and shape.experts % n == 0]
        yield (
            f"{key}.expert={layout.expert} does not divide the {ranks} ranks of a pipeline stage "
            f"(data * tensor * context); what does: {_listed(fits)}"
        )


def _pipeline(shape: GlmShape, layout: LayoutConfig, key: str) -> Iterator[str]:
    count = layout.pipeline * layout.virtual_pipeline
    if layout.virtual_pipeline > 1 and layout.pipeline < 3:
        # With two, Megatron 0.16.1 mixes up what it sends to the one neighbour as next and as previous.
        yield (
            f"{key}.virtual_pipeline={layout.virtual_pipeline} needs {key}.pipeline of 3 or more, not "
            f"{layout.pipeline}"
        )
    if count > shape.layers:
        yield (
            f"{key}: pipeline={layout.pipeline} * virtual_pipeline={layout.virtual_pipeline} makes "
            f"{count} parts of {shape.layers} layers; at most {shape.layers} parts have a layer each"
        )
    sizes = _sizes(layout.pipeline_layers)
    if layout.pipeline_layers and (
        len(sizes) != count or sum(sizes) != shape.layers or min(sizes) < 1
    ):
        even = LayoutConfig(pipeline=layout.pipeline, virtual_pipeline=layout.virtual_pipeline)
        example = "+".join(str(len(chunk.layers)) for chunk in glm_chunks(shape, even))
        yield (
            f"{key}.pipeline_layers={layout.pipeline_layers} must be {count} positive numbers that sum to "
            f"the model's num_hidden_layers={shape.layers}, for example {example}, whose parts begin with "
            "layers that own an indexer where that can be"
        )


def _sizes(written: str) -> tuple[int, ...]:
    """`5+4` -> (5, 4); zeros for what is no number."""
    parts = written.split("+") if written else []
    return tuple(int(part) if part.strip().isdecimal() else 0 for part in parts)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
