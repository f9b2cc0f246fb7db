"""A teacher whose weights are broken. A module of its own: a process has one Ray at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_models import save_tiny_qwen3
from transformers import AutoModelForCausalLM

from benchmarks.teacher_engines import (
    collect,
    manifest_for,
    random_requests,
    running,
    two_engines_reserved,
)
from rlframe.errors import RunError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shared_memory_gib", [0.0, 1e-9])
def test_broken_weights_of_a_teacher_stop_the_run(tmp_path, shared_memory_gib):
    """Whether they would be copied, or read where they are."""
    whole = save_tiny_qwen3(tmp_path / "ada", seed=0)
    model = AutoModelForCausalLM.from_pretrained(whole)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    manifest = manifest_for({"ada": whole, "broken": tmp_path / "broken"})
    with (
        two_engines_reserved(1) as options,
        running(manifest, options, tmp_path / "logs", shared_memory_gib=shared_memory_gib) as pool,
    ):
        pool.submit(random_requests("broken", 1, seed=1))
        with pytest.raises(
            RunError, match=r"'model\.norm\.weight' (is|has values that are) not finite"
        ):
            collect(pool, 1)
