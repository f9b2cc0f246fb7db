"""A GLM-5 computes on every layout what it computes on one rank: outputs, gradients, and its export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import rows
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.training_ranks import join_ranks, randomise_biases

LENGTHS = (5, 40, 1, 17, 63)
SHARED_START = "5+4"  # the second part begins with layer 5, which shares the ids of layer 2
FULL = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
SELECTIVE = {
    "recompute_granularity": "selective",
    "recompute_modules": ["core_attn", "moe", "mlp", "layernorm"],
}
CASES: dict[str, tuple[LayoutConfig, dict[str, Any]]] = {
    "recompute": (LayoutConfig(), FULL),
    "recompute_blocks": (LayoutConfig(), FULL | {"recompute_num_layers": 3}),
    "recompute_some": (
        LayoutConfig(),
        FULL | {"recompute_method": "block", "recompute_num_layers": 5},
    ),
    "recompute_selective": (LayoutConfig(), SELECTIVE),
    "sequence": (LayoutConfig(tensor=2, sequence_parallel=True), {}),
    "sequence_expert": (LayoutConfig(tensor=2, sequence_parallel=True, expert=2), FULL),
    "context": (LayoutConfig(context=2), {}),
    "context_expert": (LayoutConfig(context=2, expert=2), FULL),
    "data": (LayoutConfig(data=2), {}),
    "data_expert": (LayoutConfig(data=2, expert=2), {}),
    "pipeline": (LayoutConfig(pipeline=2), {}),
    "pipeline_ids_sent": (LayoutConfig(pipeline=2, pipeline_layers=SHARED_START), FULL),
}
LARGER: dict[str, tuple[LayoutConfig, dict[str, Any]]] = {
    "virtual": (LayoutConfig(pipeline=3, virtual_pipeline=3), FULL),
    "all": (
        LayoutConfig(
            tensor=2,
            sequence_parallel=True,
            context=2,
            pipeline=2,
            expert=4,
            pipeline_layers=SHARED_START,
        ),
        FULL,
    ),
}


def forward_backward_export(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    transformer: dict[str, Any],
    config: dict[str, Any],
) -> dict[str, Any]:
    """What rank 0 exports, and what this rank computes for its positions, for both roles."""
    from trainer.models.build import build_chunks
    from trainer.models.hf_bridge import export_hf

    join_ranks(rank, world_size, init_method, layout)
    results: dict[str, Any] = {}
    for role in ("policy", "critic"):
        model = build_chunks(
            hf_config=config,
            layout=layout,
            transformer=transformer,
            role=role,  # type: ignore[arg-type]
            dtype="float32",
            device="cpu",
            seed=3,
        )
        randomise_biases(model)
        results[f"{role} outputs"], results[f"{role} ids held"] = _run_schedule(model, layout)
        results[f"{role} export"] = {n: t.clone() for n, t in export_hf(model)}
        for parameter in model.parameters():  # the gradients, through the same bridge
            if parameter.requires_grad:
                parameter.data = parameter.main_grad
        results[f"{role} gradients"] = {n: t.clone() for n, t in export_hf(model)}
    return results


def _run_schedule(
    model: Any, layout: LayoutConfig
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
    """Three micro-batches through Megatron's own schedule: (positions, outputs) of each, ids still held."""
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from trainer.models.context import ContextRank
    from trainer.models.language_model import model_chunks
    from trainer.models.packed import PackedBatch, forward

    multiple = layout.tensor if layout.sequence_parallel else 1
    context = ContextRank(parallel_state.get_context_parallel_rank(), layout.context)
    batches = [
        PackedBatch.from_rows(rows(lengths), multiple_of=multiple, context=context)
        for lengths in (LENGTHS[:3], LENGTHS[3:], (30, 9))
    ]
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    chunks = model_chunks(model)
    config = chunks[0].config
    config.calculate_per_token_loss = True
    ddp = DistributedDataParallelConfig(average_in_collective=False)
    wrapped = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
    model.train()
    start, end = chunks[0].vocab_range if chunks[0].role == "policy" else (0, 1)
    # Each data-parallel rank computes the whole batch here.
    scale = 1 / layout.data

    def forward_step(iterator: Any, wrapped: Any) -> Any:
        packed = next(iterator)

        def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            real = packed.rows < packed.num_tokens
            output = output[real]
            outputs.append((packed.rows[real], output.detach()))
            weights = torch.linspace(-1, 1, TINY_GLM["vocab_size"])[start:end]
            total = (output.float() * weights).square().sum() * scale
            return total, torch.zeros((), dtype=torch.int), {}

        return forward(wrapped, packed), loss

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(batches) for _ in wrapped],
        model=wrapped,
        num_microbatches=len(batches),
        seq_length=1,
        micro_batch_size=1,
        forward_only=False,
    )
    finalize_model_grads(wrapped)
    held = sum(len(shared) for b in batches for shared in b.shared_ids.values())
    return outputs, held


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Any]:
    return one_rank_result(TINY_GLM)


def one_rank_result(config: dict[str, Any]) -> dict[str, Any]:
    (result,) = run_ranks(
        forward_backward_export, 1, layout=LayoutConfig(), transformer={}, config=config
    )
    return result  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_every_layout_computes_what_one_rank_computes(name: str, one_rank: dict[str, Any]) -> None:
    check(*CASES[name], one_rank, TINY_GLM)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_every_parallelism_at_once(name: str, one_rank: dict[str, Any]) -> None:
    check(*LARGER[name], one_rank, TINY_GLM)


def check(
    layout: LayoutConfig,
    transformer: dict[str, Any],
    expected: dict[str, Any],
    config: dict[str, Any],
) -> None:
    ranks = run_ranks(
        forward_backward_export,
        layout.world_size,
        layout=layout,
        transformer=transformer,
        config=config,
    )
    per_stage = layout.world_size // layout.pipeline
    last = ranks[-per_stage:][: layout.tensor * layout.context]
    for micro_batch in range(3):
        for role in ("policy", "critic"):
            positions, given = _together(last, layout, f"{role} outputs", micro_batch)
            order = positions.argsort()
            torch.testing.assert_close(
                given[order], expected[f"{role} outputs"][micro_batch][1], atol=3e-5, rtol=1e-5
            )
    for role in ("policy", "critic"):
        _same_tensors(ranks[0][f"{role} export"], expected[f"{role} export"], exact=True)
        _same_tensors(ranks[0][f"{role} gradients"], expected[f"{role} gradients"], exact=False)
        assert all(not r[f"{role} export"] for r in ranks[1:])
        assert all(r[f"{role} ids held"] == 0 for r in ranks), "ids outlive their last use"


def _together(
    last: list[dict[str, Any]], layout: LayoutConfig, name: str, micro_batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and outputs of all context-parallel ranks; logits of all tensor-parallel ranks."""
    by_context = [last[i : i + layout.tensor] for i in range(0, len(last), layout.tensor)]
    positions = [ranks[0][name][micro_batch][0] for ranks in by_context]
    if name.startswith("critic"):
        outputs = [ranks[0][name][micro_batch][1] for ranks in by_context]
    else:
        outputs = [torch.cat([r[name][micro_batch][1] for r in ranks], 1) for ranks in by_context]
    return torch.cat(positions), torch.cat(outputs)


def _same_tensors(
    given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, exact: bool
) -> None:
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        if exact:
            assert torch.equal(given[name], tensor), name
        elif ".indexer." not in name and not name.endswith("correction_bias"):
            assert tensor.abs().max() > 0, name
            error = (given[name] - tensor).norm() / tensor.norm()
            assert error < 2e-5, f"{name}: {error}"
