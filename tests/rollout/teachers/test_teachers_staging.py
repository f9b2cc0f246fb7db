"""Copies in shared memory are whole and checked, once; what is read ahead is not read again at the swap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_engine import engine_spec
from tiny_models import save_tiny_qwen3

from benchmarks.teacher_engines import manifest_for
from rlframe import weights
from rlframe.errors import RunError
from rlframe.machine import GIB
from rlframe.teachers.check import read_checkpoints
from rollout.engine.actor import EngineActor
from rollout.engine.server import Keys
from rollout.teachers.build import kept_teachers
from rollout.teachers.staging import Staging


@pytest.fixture
def teacher(tmp_path):
    return save_tiny_qwen3(tmp_path / "ada")


@pytest.fixture
def staging(teacher, tmp_path):
    return Staging(str(tmp_path / "staged"), read_checkpoints(manifest_for({"ada": teacher})))


def spoil(teacher, value):
    file = teacher / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_copy_is_the_checkpoint_with_checksums(teacher, staging, tmp_path):
    manifest = staging.ready("ada", keep=True)
    assert manifest.directory == str(tmp_path / "staged" / "ada")
    assert weights.verify(manifest) == []
    copied = load_file(f"{manifest.directory}/model.safetensors")
    given = load_file(teacher / "model.safetensors")
    assert copied.keys() == given.keys()
    assert all(torch.equal(copied[name], given[name]) for name in given)
    staging.remove()
    assert not (tmp_path / "staged").exists()


def test_engines_of_a_node_copy_a_teacher_once(teacher, staging):
    first = staging.ready("ada", keep=True)
    written = weights.file_identity(f"{first.directory}/model.safetensors")
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda _: staging.ready("ada", keep=True), range(4)))
    assert all(manifest == first for manifest in again)
    assert weights.file_identity(f"{first.directory}/model.safetensors") == written


def test_a_copy_that_was_broken_off_is_made_again(staging, tmp_path):
    directory = tmp_path / "staged" / "ada"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"half")
    assert weights.verify(staging.ready("ada", keep=True)) == []


def test_numbers_that_are_not_finite_are_refused(teacher, staging):
    spoil(teacher, float("inf"))
    with pytest.raises(RunError, match=r"'model\.norm\.weight' is not finite"):
        staging.ready("ada", keep=True)


def test_files_that_change_after_the_first_reading_are_refused(teacher, staging, tmp_path):
    engine = EngineActor(engine_spec(teacher, tmp_path), Keys(), one_host=True)
    manifest = staging.ready("ada", keep=False)
    assert manifest.directory == str(teacher)
    engine.check_ahead(replace(manifest, version=5))
    spoil(teacher, 7.0)
    with pytest.raises(RunError, match=r"'model\.norm\.weight' has another checksum"):
        engine.check_ahead(replace(staging.ready("ada", keep=False), version=5))


def test_what_was_checked_ahead_is_not_read_again(teacher, staging, tmp_path, monkeypatch):
    engine = EngineActor(engine_spec(teacher, tmp_path), Keys(), one_host=True)
    manifest = staging.ready("ada", keep=True)
    engine.check_ahead(replace(manifest, version=2**62))
    read = []
    monkeypatch.setattr(weights, "inspect", lambda *given: read.append(given) or ("", True))
    engine._check(replace(manifest, version=3))
    assert read == []
    other = replace(
        manifest,
        tensors={n: replace(t, checksum="0") for n, t in manifest.tensors.items()},
    )
    with pytest.raises(RunError, match="another checksum"):
        engine._check(replace(other, version=3))
    assert read


def test_as_many_are_kept_as_fit():
    sizes = dict.fromkeys("abc", GIB)
    assert kept_teachers(sizes, 0.0, "node", 4 * GIB + 1) == {"a", "b"}  # half of what is free
    assert kept_teachers(sizes, 3.0, "node", 4 * GIB) == {"a", "b", "c"}
    assert kept_teachers(sizes, 3.0, "node", int(1.5 * GIB)) == {"a"}
    assert kept_teachers({"large": 9 * GIB, "small": GIB}, 2.0, "node", 4 * GIB) == {"small"}


def test_a_view_of_another_dtype_is_copied_as_it_is(tmp_path):
    directory = save_tiny_qwen3(tmp_path / "half")
    tensors = {
        n: t.to(torch.bfloat16) for n, t in load_file(directory / "model.safetensors").items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    checkpoints = read_checkpoints(manifest_for({"half": directory}))
    assert checkpoints["half"].dtype == "bfloat16"
    manifest = Staging(str(tmp_path / "staged"), checkpoints).ready("half", keep=True)
    stored = weights.open_directory(manifest.directory)
    assert np.array_equal(
        stored["model.norm.weight"].data,
        weights.open_directory(directory)["model.norm.weight"].data,
    )
