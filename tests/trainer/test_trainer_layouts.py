"""The same weights and tokens give the same outputs, gradients and export on every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import LENGTHS, TINY, rows
from trainer.megatron.parallel import destroy_parallel, init_parallel

LAYOUTS = {
    "tensor": LayoutConfig(tensor=2),
    "sequence": LayoutConfig(tensor=2, sequence_parallel=True),
    "pipeline": LayoutConfig(pipeline=2),
    "data": LayoutConfig(data=2),
    "tensor_pipeline": LayoutConfig(tensor=2, pipeline=2, sequence_parallel=True),
}


def forward_backward_export(
    rank: int, world_size: int, init_method: str, layout: LayoutConfig, tied: bool
) -> dict[str, Any]:
    """What rank 0 exports, and what the last stage's ranks compute, for both roles."""
    from trainer.models.build import build_model
    from trainer.models.hf_bridge import export_hf

    init_parallel(
        layout=layout,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device="cpu",
        timeout_s=60,
        seed=1,
    )
    results: dict[str, Any] = {}
    for role in ("policy", "critic"):
        model = build_model(
            hf_config=TINY | {"tie_word_embeddings": tied},
            layout=layout,
            transformer={},
            role=role,  # type: ignore[arg-type]
            dtype="float32",
            device="cpu",
            seed=3,
        )
        results[f"{role} outputs"] = _run_schedule(model, layout)
        results[f"{role} export"] = {n: t.clone() for n, t in export_hf(model)}
        for parameter in model.parameters():  # the gradients, through the same bridge
            parameter.data = parameter.main_grad
        results[f"{role} gradients"] = {n: t.clone() for n, t in export_hf(model)}
    destroy_parallel()
    return results


def _run_schedule(model: Any, layout: LayoutConfig) -> list[torch.Tensor]:
    """Two micro-batches of different lengths through Megatron's own schedule."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from trainer.models.packed import PackedBatch, forward

    multiple = layout.tensor if layout.sequence_parallel else 1
    batches = [
        PackedBatch.from_rows(rows(LENGTHS[:3]), multiple_of=multiple),
        PackedBatch.from_rows(rows(LENGTHS[3:]), multiple_of=multiple),
    ]
    outputs: list[torch.Tensor] = []
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    start, end = model.vocab_range if model.role == "policy" else (0, 1)

    def forward_step(iterator: Any, wrapped: Any) -> Any:
        packed = next(iterator)

        def loss(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
            output = output[: packed.num_tokens]
            outputs.append(output.detach())
            weights = torch.linspace(-1, 1, TINY["vocab_size"])[start:end]
            return (output.float() * weights).square().sum() * 2, {}

        return forward(wrapped, packed), loss

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[wrapped],
        num_microbatches=2,
        seq_length=1,
        micro_batch_size=1,
        forward_only=False,
    )
    finalize_model_grads([wrapped])
    return outputs


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def one_rank(request: pytest.FixtureRequest) -> tuple[bool, dict[str, Any]]:
    (result,) = run_ranks(forward_backward_export, 1, layout=LayoutConfig(), tied=request.param)
    return request.param, result


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_computes_what_one_rank_computes(
    name: str, one_rank: tuple[bool, dict[str, Any]]
) -> None:
    tied, expected = one_rank
    layout = LAYOUTS[name]
    ranks = run_ranks(forward_backward_export, layout.world_size, layout=layout, tied=tied)
    last = ranks[-layout.tensor :]
    for micro_batch in range(2):
        logits = torch.cat([r["policy outputs"][micro_batch] for r in last], dim=1)
        torch.testing.assert_close(
            logits, expected["policy outputs"][micro_batch], atol=1e-5, rtol=1e-5
        )
        for r in last:
            torch.testing.assert_close(
                r["critic outputs"][micro_batch],
                expected["critic outputs"][micro_batch],
                atol=1e-5,
                rtol=1e-5,
            )
    for role in ("policy", "critic"):
        _same_tensors(ranks[0][f"{role} export"], expected[f"{role} export"], exact=True)
        _same_tensors(ranks[0][f"{role} gradients"], expected[f"{role} gradients"], exact=False)
        assert all(not r[f"{role} export"] for r in ranks[1:])


def _same_tensors(
    given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, exact: bool
) -> None:
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        if exact:
            assert torch.equal(given[name], tensor), name
        else:
            assert tensor.abs().max() > 0, name
            error = (given[name] - tensor).norm() / tensor.norm()
            assert error < 1e-5, f"{name}: {error}"
