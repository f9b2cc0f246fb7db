"""A critic over bins of values: its head in checkpoints of both kinds, and what its values are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlframe.config.schema import LayoutConfig
from rlframe.errors import UserError
from tests.trainer.spawn import run_ranks
from tests.trainer.train_rows import BINS, plan_of, rank_spec, train_rows

WHOLE = plan_of(((0, 1, 2, 3, 4),))


def keep(rank: int, world_size: int, init_method: str, directory: str) -> dict[str, Any]:
    """Trains, saves, exports; loads both again, and into heads that they do not fit."""
    from tests.trainer.training_ranks import join_ranks, own_shard, parameters, update
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, LayoutConfig())
    critic = Training(rank_spec("critic_bins"), "cpu")
    rows = train_rows()
    statistics = update(critic, rows, WHOLE, step=0)
    critic.save(f"{directory}/saved", 1)
    critic.export_hf(f"{directory}/hf")

    def from_export(kind: str) -> Training:
        spec = rank_spec(kind)
        model = dataclasses.replace(spec.model, path=f"{directory}/hf")
        return Training(dataclasses.replace(spec, model=model), "cpu")

    reloaded = Training(rank_spec("critic_bins"), "cpu")
    step = reloaded.load(f"{directory}/saved")
    with pytest.raises(UserError) as other_saved:
        Training(rank_spec("critic"), "cpu").load(f"{directory}/saved")
    with pytest.raises(UserError) as other_exported:
        from_export("critic")
    return {
        "statistics": statistics,
        "step": step,
        "weights": [parameters(t) for t in (critic, reloaded, from_export("critic_bins"))],
        "values": critic.values(own_shard(critic, rows, WHOLE, ())),
        "refused": (str(other_saved.value), str(other_exported.value)),
    }


def test_a_head_of_bins_is_kept_whole_and_other_heads_are_refused(tmp_path: Path) -> None:
    (seen,) = run_ranks(keep, 1, directory=str(tmp_path))
    assert {"beyond_range", "error"} <= seen["statistics"].keys()
    assert seen["step"] == 1
    first, *again = seen["weights"]
    assert first["score.weight"].shape == (21, 32)
    for weights in again:
        assert weights.keys() == first.keys()
        assert all(np.array_equal(weights[name], first[name]) for name in first)
    saved, exported = seen["refused"]
    assert "value_bins" in saved
    assert "'score.weight' has shape [21, 32]" in exported
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["value_bins"] == BINS


def test_its_values_are_the_expectations_that_transformers_computes(tmp_path: Path) -> None:
    import transformers

    (seen,) = run_ranks(keep, 1, directory=str(tmp_path))
    model, told = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(tmp_path / "hf"), output_loading_info=True, dtype=torch.float64
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    width = (BINS["highest"] - BINS["lowest"]) / BINS["count"]
    middle = BINS["lowest"] + width * (torch.arange(BINS["count"], dtype=torch.float64) + 0.5)
    start = 0
    for row in train_rows():
        tokens = torch.from_numpy(row.token_ids).long()[None]
        with torch.no_grad():
            logits = model.score(model.model(tokens).last_hidden_state[0])
        expected = (torch.softmax(logits, -1) @ middle)[:-1].numpy()
        found = seen["values"][start : start + len(row.token_ids)]
        np.testing.assert_allclose(found[1:], expected, atol=2e-5, rtol=0)
        start += len(row.token_ids)
