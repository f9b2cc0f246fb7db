"""What a run saved, as a Hugging Face checkpoint: the bits that the trainer itself exports, from any layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlframe.checkpoints import MARKER
from rlframe.config.schema import LayoutConfig, MtpConfig
from rlframe.errors import UserError
from rlframe.launch.convert import find_source, read_size, run_convert
from tests.trainer.hf_checkpoints import WITH_MTP, assert_same, read_all
from tests.trainer.spawn import run_ranks
from tests.trainer.tiny import TINY
from tests.trainer.train_rows import rank_spec
from trainer.convert.check import name_problems
from trainer.convert.run_source import SavedRole
from trainer.convert.sources import HfSource
from trainer.convert.stream import Conversion, Options

ONE = LayoutConfig()
LAYOUTS = {
    "tensor": LayoutConfig(tensor=2, sequence_parallel=True, expert=2),
    "virtual": LayoutConfig(pipeline=3, virtual_pipeline=2),
}


def save(
    rank: int,
    world_size: int,
    init_method: str,
    layout: LayoutConfig,
    hf: dict[str, Any],
    where: str,
    kind: str = "policy",
    mtp: bool = False,
) -> None:
    """Training state, and what the trainer itself writes for Hugging Face."""
    from tests.trainer.training_ranks import join_ranks, randomise_biases
    from trainer.megatron.training import Training

    join_ranks(rank, world_size, init_method, layout)
    options = {"mtp": MtpConfig(mode="detached", steps=2)} if mtp else {}
    spec = rank_spec(kind, rank=rank, layout=layout, hf_config=hf, **options)
    training = Training(spec, "cpu")
    randomise_biases(training.model)
    training.save(f"{where}/{kind}", 7)
    training.export_hf(f"{where}/hf")


def compare(where: Path, kind: str = "policy") -> SavedRole:
    source = SavedRole(where / kind)
    Conversion(source, where / "out", Options(max_shard_bytes=60_000)).run()
    assert_same(read_all(where / "out"), read_all(where / "hf"))
    ours, theirs = (json.loads((where / d / "config.json").read_text()) for d in ("out", "hf"))
    assert ours == theirs
    assert name_problems(HfSource(where / "out")) == []
    return source


@pytest.mark.parametrize("name", ["tensor", pytest.param("virtual", marks=pytest.mark.slow)])
def test_glm_from_any_layout(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    run_ranks(save, layout.world_size, layout=layout, hf=WITH_MTP, where=str(tmp_path))
    source = compare(tmp_path)
    assert source.hf_config["num_nextn_predict_layers"] == 0  # it was not trained with the rest


def test_an_mtp_layer_that_was_trained_is_there(tmp_path: Path) -> None:
    run_ranks(save, 1, layout=ONE, hf=WITH_MTP, where=str(tmp_path), mtp=True)
    source = compare(tmp_path)
    assert source.hf_config["num_nextn_predict_layers"] == 1
    assert "model.layers.9.eh_proj.weight" in source.tensors


@pytest.mark.parametrize(("kind", "tied"), [("policy", True), ("critic", False)])
def test_a_dense_model(kind: str, tied: bool, tmp_path: Path) -> None:
    """Its layers are stacked, its vocabulary of 67 is padded, its q, k and v lie in groups."""
    hf = {**TINY, "tie_word_embeddings": tied}
    run_ranks(save, 2, layout=LayoutConfig(tensor=2), hf=hf, where=str(tmp_path), kind=kind)
    compare(tmp_path, kind)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run, the second not complete."""
    run = tmp_path_factory.mktemp("run")
    step = run / "checkpoints" / "step-000007"
    run_ranks(save, 1, layout=ONE, hf=TINY, where=str(step))
    (step / MARKER).write_text(json.dumps({"step": 7, "roles": ["policy"]}))
    (run / "checkpoints" / "step-000008" / "policy").mkdir(parents=True)
    (run / "model").mkdir()
    (run / "model" / "tokenizer.json").write_text("{}")
    return run


def test_a_runs_latest_complete_checkpoint_with_its_tokenizer(
    run_directory: Path, tmp_path: Path
) -> None:
    done = run_convert(
        str(run_directory),
        str(tmp_path / "out"),
        dtype="bfloat16",
        max_shard_size="1MB",
        drop_mtp=False,
        step=None,
        role="policy",
    )
    assert done == 0
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("step", "role", "said"),
    [
        (8, "policy", "has checkpoints of steps 7"),
        (7, "critic", "has policy"),
    ],
)
def test_what_is_not_there_is_said(run_directory: Path, step: int, role: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_source(run_directory, step=step, role=role)


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        find_source(tmp_path, step=None, role="policy")
    with pytest.raises(UserError, match="no run directory"):
        find_source(tmp_path, step=3, role="policy")


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("2GiB", 2 << 30), ("1.5mb", 1_500_000), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "5 giraffes", "0GB", "-1GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="5GB"):
        read_size(text)
