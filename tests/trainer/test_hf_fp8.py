"""FP8 weights with block scales: the error's bound, ragged edges, and what survives a round trip to the bit."""

import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlframe.errors import UserError
from trainer.models.fp8_blocks import BLOCK, FP8, dequantise, quantise, scale_shape
from trainer.models.hf_files import HfCheckpoint

sizes = st.integers(1, 300)
seeds = st.integers(0, 1 << 30)
exponents = st.integers(-60, 60)


def weight(rows: int, columns: int, seed: int, exponent: int) -> torch.Tensor:
    """float32 values of many magnitudes, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    spread = torch.randint(-12, 1, (rows, columns), generator=generator)
    values = torch.ldexp(values, spread + exponent)
    return values * (torch.rand(rows, columns, generator=generator) > 0.1)


def plain(quantised: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Dequantised, number by number, in float64."""
    rows, columns = quantised.shape
    every = scale.double().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return quantised.double() * every[:rows, :columns]


@given(sizes, sizes, seeds, exponents)
@example(1, 1, 0, 0)
@example(128, 129, 0, 0)
@settings(deadline=None, max_examples=60)
def test_the_error_is_half_a_step_of_e4m3(rows, columns, seed, exponent):
    w = weight(rows, columns, seed, exponent)
    quantised, scale = quantise(w)
    assert quantised.dtype == FP8
    assert quantised.shape == w.shape
    assert tuple(scale.shape) == (-(-rows // 128), -(-columns // 128)) == scale_shape(w.shape)
    assert bool((quantised.float().abs() <= 448).all())
    every = scale.double().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    half_step = torch.maximum(w.double().abs() * 2.0**-4, every * 2.0**-10)
    error = (plain(quantised, scale) - w.double()).abs()
    assert bool((error <= half_step * (1 + 1e-6)).all())


@given(sizes, sizes, seeds, exponents)
@settings(deadline=None, max_examples=40)
def test_dequantised_is_the_product_rounded_to_float32(rows, columns, seed, exponent):
    quantised, scale = quantise(weight(rows, columns, seed, exponent))
    assert torch.equal(dequantise(quantised, scale), plain(quantised, scale).float())


@given(sizes, sizes, seeds, exponents)
@settings(deadline=None, max_examples=60)
def test_fp8_made_of_bfloat16_survives_the_way_over_bfloat16(rows, columns, seed, exponent):
    source = weight(rows, columns, seed, exponent).to(torch.bfloat16)
    quantised, scale = quantise(source)
    again, scale_again = quantise(dequantise(quantised, scale).to(torch.bfloat16))
    assert torch.equal(scale_again, scale)
    assert torch.equal(again.view(torch.uint8), quantised.view(torch.uint8))


def test_scales_that_no_bfloat16_gave_keep_the_numbers_but_not_the_scale():
    """Why the condition is there: 1.0009765625 / 448 * 448 is no bfloat16."""
    quantised = torch.tensor([[448.0, 13.0]]).to(FP8)
    scale = torch.tensor([[1.0009765625 / 448]])
    again, other = quantise(dequantise(quantised, scale).to(torch.bfloat16))
    assert torch.equal(again.float(), quantised.float())
    assert other.item() != scale.item()


def test_a_block_of_zeros_has_scale_one():
    quantised, scale = quantise(torch.zeros(130, 5))
    assert scale.tolist() == [[1.0], [1.0]]
    assert not quantised.float().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        quantise(torch.tensor([[1.0, value]]))


def checkpoint(tmp_path, tensors) -> HfCheckpoint:
    save_file(tensors, tmp_path / "model.safetensors")
    return HfCheckpoint(tmp_path)


def test_a_checkpoint_gives_fp8_weights_as_floats(tmp_path):
    w = weight(300, 200, 1, 0)
    quantised, scale = quantise(w)
    read = checkpoint(tmp_path, {"a.weight": quantised, "a.weight_scale_inv": scale, "b": w})
    assert read.shapes == {"a.weight": (300, 200), "b": (300, 200)}
    assert torch.equal(read.read("a.weight"), dequantise(quantised, scale))
    assert torch.equal(read.read("a.weight", slice(128, 300)), read.read("a.weight")[128:])
    assert torch.equal(read.read("b", slice(7, 9)), w[7:9])


def test_fp8_without_fitting_scales_is_refused_and_all_are_named(tmp_path):
    quantised, scale = quantise(weight(300, 200, 1, 0))
    with pytest.raises(UserError) as refused:
        checkpoint(
            tmp_path,
            {"a.weight": quantised, "b.weight": quantised.clone(), "b.weight_scale_inv": scale[:2]},
        )
    said = str(refused.value)
    assert "'a.weight' is FP8, but has no 'a.weight_scale_inv'" in said
    assert "'b.weight_scale_inv' has shape [2, 2]" in said


def test_every_dtype_reads_as_safetensors_reads_it(tmp_path):
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    given_tensors = {str(d): torch.randn(5, 3).to(d) for d in dtypes} | {"s": torch.tensor(2.5)}
    read = checkpoint(tmp_path, given_tensors)
    for name, tensor in given_tensors.items():
        assert torch.equal(read.read(name), tensor)


def test_an_index_and_its_files_must_agree(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(UserError, match="'b' should be in"):
        HfCheckpoint(tmp_path)
