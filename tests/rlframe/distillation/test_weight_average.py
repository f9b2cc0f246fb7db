"""The average of checkpoints against torch, in each dtype."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlframe.distillation.weight_average import FILE, write_average
from rlframe.errors import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mean_of_three(tmp_path, dtype):
    given = []
    for seed in range(3):
        torch.manual_seed(seed)
        tensors = {"a.weight": torch.randn(7, 5).to(dtype), "b.bias": torch.randn(3).to(dtype)}
        (tmp_path / str(seed)).mkdir()
        save_file(tensors, tmp_path / str(seed) / "model.safetensors")
        given.append(tensors)
    write_average([str(tmp_path / str(seed)) for seed in range(3)], tmp_path / "mean")
    found = load_file(tmp_path / "mean" / FILE)
    for name in given[0]:
        expected = torch.stack([t[name].double() for t in given]).mean(0).float().to(dtype)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)


def test_other_shapes_are_refused(tmp_path):
    for name, size in (("one", 3), ("two", 4)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.zeros(size)}, tmp_path / name / "model.safetensors")
    with pytest.raises(UserError, match="other tensors than"):
        write_average([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "mean")
