"""Against transformers' own Qwen3: outputs and gradients of packed sequences, exported checkpoints.

Each rank function runs as the only rank of a role, in a process of its own, and asserts there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlframe.config.schema import LayoutConfig
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import LENGTHS, TINY, rows
from trainer.megatron.parallel import init_parallel


def build(init_method: str, *, role: str, dtype: str = "float32", **changes: Any) -> Any:
    """A model with random weights, on the only rank."""
    import torch.distributed as dist

    from trainer.models.build import build_model

    layout = LayoutConfig()
    if not dist.is_initialized():
        init_parallel(
            layout=layout,
            rank=0,
            world_size=1,
            init_method=init_method,
            device="cpu",
            timeout_s=60,
            seed=1,
        )
    return build_model(
        hf_config=TINY | changes,
        layout=layout,
        transformer={},
        role=role,  # type: ignore[arg-type]
        dtype=dtype,
        device="cpu",
        seed=3,
    )


def reload_with_transformers(model: Any, directory: str, kind: str, **changes: Any) -> Any:
    """The same weights in transformers, by way of an exported checkpoint."""
    import transformers

    from trainer.models.exported import write_checkpoint

    write_checkpoint(model, TINY | changes, directory)
    loader = getattr(transformers, f"AutoModelFor{kind}")
    reference, loading = loader.from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading.values()), loading
    return reference.eval()


def policy_is_transformers_qwen3(
    rank: int, world_size: int, init_method: str, directory: str, tied: bool
) -> None:
    from trainer.models.model_names import tensor_shapes
    from trainer.models.packed import PackedBatch, forward

    model = build(init_method, role="policy", tie_word_embeddings=tied)
    reference = reload_with_transformers(model, directory, "CausalLM", tie_word_embeddings=tied)
    packed = PackedBatch.from_rows(rows(LENGTHS))
    logits = forward(model, packed)
    expected = torch.cat(
        [reference(torch.from_numpy(row).long()[None]).logits[0] for row in rows(LENGTHS)]
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    from trainer.models.hf_bridge import export_hf

    gradients = {n: t.clone() for n, t in export_hf(model)}
    theirs = {n: p.grad for n, p in reference.named_parameters()}
    assert gradients.keys() == theirs.keys() == tensor_shapes(model.shape, role="policy").keys()
    for name, gradient in gradients.items():
        error = (gradient - theirs[name]).norm() / theirs[name].norm()
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_policy_is_transformers_qwen3(tmp_path: Path, tied: bool) -> None:
    run_ranks(policy_is_transformers_qwen3, 1, directory=str(tmp_path / "hf"), tied=tied)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def critic_is_transformers_classifier(
    rank: int, world_size: int, init_method: str, directory: str
) -> None:
    from trainer.models.packed import PackedBatch, forward

    model = build(init_method, role="critic")
    reference = reload_with_transformers(model, directory, "SequenceClassification")
    assert reference.config.num_labels == 1
    # transformers gives the score of the last token: ask for every sequence's last position.
    ends = np.cumsum(LENGTHS) - 1
    packed = PackedBatch.from_rows(rows(LENGTHS), output_positions=ends)
    values = forward(model, packed)
    assert values.dtype == torch.float32
    expected = torch.stack(
        [reference(torch.from_numpy(row).long()[None]).logits[0, 0] for row in rows(LENGTHS)]
    )
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


def test_critic_is_transformers_classifier_with_one_label(tmp_path: Path) -> None:
    run_ranks(critic_is_transformers_classifier, 1, directory=str(tmp_path / "hf"))


def packing_does_not_matter(rank: int, world_size: int, init_method: str) -> None:
    from trainer.models.packed import PackedBatch, forward

    for role in ("policy", "critic"):
        model = build(init_method, role=role)
        together = forward(model, PackedBatch.from_rows(rows(LENGTHS), multiple_of=8))
        together = together[: sum(LENGTHS)]
        (together.square().sum()).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        alone = []
        for row in rows(LENGTHS):
            output = forward(model, PackedBatch.from_rows([row]))
            output.square().sum().backward()
            alone.append(output.detach())
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            error = (gradient - parameter.grad).norm() / gradient.norm()
            assert error < 1e-5, f"{role} {name}: {error}"
        some = np.array([0, 44, 45, 100])
        chosen = forward(model, PackedBatch.from_rows(rows(LENGTHS), output_positions=some))
        torch.testing.assert_close(chosen, together[some], atol=1e-6, rtol=1e-6)
        nothing = forward(model, PackedBatch.from_rows([], multiple_of=2))
        assert len(nothing) == 2


def test_packed_outputs_and_gradients_are_those_of_single_sequences() -> None:
    run_ranks(packing_does_not_matter, 1)


def only_what_is_asked_for_goes_on_after_attention(
    rank: int, world_size: int, init_method: str
) -> None:
    from trainer.models.packed import PackedBatch, forward

    # A position twice, as where rows share what they begin with.
    some = np.array([0, 44, 44, 45, 100])
    lengths: list[int] = []
    for role in ("policy", "critic"):
        model = build(init_method, role=role)
        lengths.clear()
        for layer in model.decoder.layers:
            layer.mlp.register_forward_hook(lambda _, inputs, __: lengths.append(len(inputs[0])))
        together = forward(model, PackedBatch.from_rows(rows(LENGTHS)))
        together[some].square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        chosen = forward(model, PackedBatch.from_rows(rows(LENGTHS), output_positions=some))
        chosen.square().sum().backward()
        torch.testing.assert_close(chosen, together[some], atol=1e-6, rtol=1e-6)
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4, msg=name)
        every, layers = sum(LENGTHS), len(model.decoder.layers)
        assert lengths == [every] * layers + [every] * (layers - 1) + [len(some)]


def test_only_what_is_asked_for_goes_on_after_attention() -> None:
    run_ranks(only_what_is_asked_for_goes_on_after_attention, 1)


def bfloat16_is_close(rank: int, world_size: int, init_method: str, directory: str) -> None:
    from trainer.models.packed import PackedBatch, forward

    model = build(init_method, role="policy", dtype="bfloat16")
    reference = reload_with_transformers(model, directory, "CausalLM")
    assert next(reference.parameters()).dtype == torch.bfloat16
    logits = forward(model, PackedBatch.from_rows(rows(LENGTHS)))
    assert logits.dtype == torch.bfloat16
    expected = torch.cat(
        [reference.float()(torch.from_numpy(row).long()[None]).logits[0] for row in rows(LENGTHS)]
    )
    gap = (logits.float().log_softmax(-1) - expected.log_softmax(-1)).abs().mean()
    assert gap < 1e-2
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_is_close_to_float32_on_the_same_weights(tmp_path: Path) -> None:
    run_ranks(bfloat16_is_close, 1, directory=str(tmp_path / "hf"))


def recomputation_changes_nothing(rank: int, world_size: int, init_method: str) -> None:
    from trainer.models.build import build_model
    from trainer.models.packed import PackedBatch, forward

    plain = build(init_method, role="policy")
    recomputing = build_model(
        hf_config=TINY,
        layout=LayoutConfig(),
        transformer={
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
        role="policy",
        dtype="float32",
        device="cpu",
        seed=3,
    )
    outputs = []
    for model in (plain, recomputing):
        output = forward(model, PackedBatch.from_rows(rows(LENGTHS)))
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for ours, theirs in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_activation_recomputation_changes_nothing() -> None:
    run_ranks(recomputation_changes_nothing, 1)
