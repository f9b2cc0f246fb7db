"""Conversions between Hugging Face checkpoints: exact, resumable, in little memory; what is wrong is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmMoeDsaForCausalLM

from rlframe.errors import UserError
from tests.trainer.hf_checkpoints import WITH_MTP, assert_same, read_all, write_glm
from tests.trainer.spawn import run_ranks
from trainer.convert.check import name_problems, value_problems
from trainer.convert.sources import HfSource
from trainer.convert.stream import Conversion, Options
from trainer.convert.with_mtp import WithMtp
from trainer.models.fp8_blocks import dequantise
from trainer.models.hf_files import HfCheckpoint

MTP = "model.layers.9."


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm(tmp_path_factory.mktemp("glm") / "bf16")


def convert(source: Path, destination: Path, **options) -> Path:
    Conversion(HfSource(source), destination, Options(**options)).run()
    return destination


def test_smaller_files_hold_the_same_bits(glm, tmp_path):
    target = convert(glm, tmp_path / "out", max_shard_bytes=100_000)
    assert_same(read_all(target), read_all(glm))
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 5
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in files}
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for t in read_all(target).values()
    )
    largest = max(t.numel() * t.element_size() for t in read_all(target).values())
    for file in files:
        held = sum(t.numel() * t.element_size() for t in load_file(file).values())
        assert held <= max(100_000, largest)
    assert (target / "tokenizer.json").read_text() == "{}"
    assert not list(tmp_path.glob(".*"))


def test_transformers_loads_what_is_written(glm, tmp_path):
    target = convert(
        glm, tmp_path / "out", target="float32", max_shard_bytes=200_000, drop_mtp=True
    )
    ids = torch.arange(12).view(1, -1)
    logits = [
        GlmMoeDsaForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
        for path in (glm, target)
    ]
    assert torch.equal(*logits)


def test_bfloat16_to_fp8_and_back_and_again_is_exact(glm, tmp_path):
    fp8 = convert(glm, tmp_path / "fp8", target="float8")
    back = convert(fp8, tmp_path / "back", target="bfloat16")
    again = convert(back, tmp_path / "again", target="float8", max_shard_bytes=50_000)
    assert_same(read_all(again), read_all(fp8))
    assert (tmp_path / "fp8/config.json").read_text() == (again / "config.json").read_text()


def test_fp8_checkpoints_have_what_the_published_ones_have(glm, tmp_path):
    target = convert(glm, tmp_path / "fp8", target="float8")
    written, source = read_all(target), read_all(glm)
    fp8 = {name for name, tensor in written.items() if tensor.dtype == torch.float8_e4m3fn}
    layer = "model.layers.6."
    for name in (
        "self_attn.q_a_proj",
        "self_attn.kv_b_proj",
        "self_attn.o_proj",
        "self_attn.indexer.wk",
    ):
        assert f"{layer}{name}.weight" in fp8
    for name in ("mlp.experts.7.down_proj", "mlp.shared_experts.up_proj", "self_attn.indexer.wq_b"):
        assert f"{layer}{name}.weight" in fp8
        assert f"{layer}{name}.weight" in {n.removesuffix("_scale_inv") for n in written}
    kept = ["model.embed_tokens.weight", "lm_head.weight", f"{MTP}eh_proj.weight"]
    kept += [f"{layer}mlp.gate.weight", f"{layer}self_attn.indexer.weights_proj.weight"]
    for name in (*kept, f"{layer}input_layernorm.weight"):
        assert torch.equal(written[name], source[name])
        assert written[name].dtype == torch.bfloat16
    assert written[f"{layer}mlp.gate.e_score_correction_bias"].dtype == torch.float32
    described = json.loads((target / "config.json").read_text())["quantization_config"]
    assert described["weight_block_size"] == [128, 128]
    assert {f"{layer}mlp.gate", "lm_head"} <= set(described["modules_to_not_convert"])
    for name in fp8:
        expected = dequantise(written[name], written[name + "_scale_inv"])
        assert torch.equal(HfCheckpoint(target).read(name), expected)


def test_what_is_stored_as_fp8_stays_so(glm, tmp_path):
    fp8 = convert(glm, tmp_path / "fp8", target="float8")
    copy = convert(fp8, tmp_path / "copy", max_shard_bytes=50_000)
    assert_same(read_all(copy), read_all(fp8))
    assert json.loads((copy / "config.json").read_text())["quantization_config"]


def test_the_mtp_layer_can_be_left_out(glm, tmp_path):
    target = convert(glm, tmp_path / "out", drop_mtp=True)
    assert not [name for name in read_all(target) if name.startswith(MTP)]
    assert json.loads((target / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert name_problems(HfSource(target)) == []


def test_the_mtp_layer_can_come_from_elsewhere(glm, tmp_path):
    bare = convert(glm, tmp_path / "bare", drop_mtp=True)
    donor = convert(glm, tmp_path / "donor", target="float8")
    source = WithMtp(HfSource(bare), HfSource(donor))
    Conversion(source, tmp_path / "out", Options(target="bfloat16")).run()
    expected = read_all(convert(donor, tmp_path / "back", target="bfloat16"))
    expected = read_all(bare) | {n: t for n, t in expected.items() if n.startswith(MTP)}
    assert_same(read_all(tmp_path / "out"), expected)
    assert name_problems(HfSource(tmp_path / "out")) == []
    with pytest.raises(UserError, match="has no MTP layer"):
        WithMtp(HfSource(glm), HfSource(bare))


class StoppedError(Exception):
    pass


def interrupt_after(calls: int):
    def advance(count: int) -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise StoppedError

    return advance


@pytest.mark.parametrize("calls", [0, 1, 40, 200])
def test_an_interrupted_conversion_goes_on(glm, tmp_path, calls):
    options = Options(target="float8", max_shard_bytes=50_000)
    target = tmp_path / "out"
    with pytest.raises(StoppedError):
        Conversion(HfSource(glm), target, options).run(interrupt_after(calls))
    assert not target.exists()
    seen = []
    done = Conversion(HfSource(glm), target, options).run(seen.append)
    assert sum(seen) == done.num_bytes
    assert done.resumed_files < done.files
    assert (done.resumed_files > 0) == (calls >= 40)
    straight = convert(glm, tmp_path / "straight", target="float8", max_shard_bytes=50_000)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {
        p.name: p.read_bytes() for p in straight.iterdir()
    }


def test_half_of_another_conversion_is_not_gone_on_with(glm, tmp_path):
    with pytest.raises(StoppedError):
        Conversion(HfSource(glm), tmp_path / "out", Options(max_shard_bytes=50_000)).run(
            interrupt_after(60)
        )
    with pytest.raises(UserError, match="half of another conversion"):
        Conversion(HfSource(glm), tmp_path / "out", Options(target="float8"))


def test_an_existing_target_is_left_alone(glm, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="exists"):
        convert(glm, tmp_path)


def test_a_number_that_is_none_stops_a_conversion_and_the_layer_is_named(glm, tmp_path):
    broken = write_glm(tmp_path / "broken")
    change(
        broken,
        lambda t: t["model.layers.4.mlp.experts.3.up_proj.weight"].view(-1)[5].fill_(float("nan")),
    )
    for target in ("stored", "float8", "float32"):
        with pytest.raises(UserError, match=r"experts\.3\.up_proj\.weight' of layer 4"):
            convert(broken, tmp_path / "out", target=target)
        for leftover in tmp_path.glob(".out.partial/*"):
            leftover.unlink()


def change(directory: Path, how) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def test_a_whole_checkpoint_has_no_problems(glm):
    assert name_problems(HfSource(glm)) == []
    assert list(value_problems(HfSource(glm), lambda count: None)) == []


def test_all_that_is_wrong_is_named(tmp_path):
    broken = write_glm(tmp_path / "broken")

    def spoil(tensors):
        del tensors["model.layers.2.self_attn.o_proj.weight"]
        del tensors[f"{MTP}eh_proj.weight"]
        tensors["model.layers.4.self_attn.indexer.wk.weight"] = torch.zeros(16, 64)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
        tensors["surplus"] = torch.zeros(1)
        tensors["model.norm.weight"][:2] = float("inf")
        tensors["model.layers.5.mlp.gate.weight"][1, 1] = float("nan")

    change(broken, spoil)
    names = "\n".join(name_problems(HfSource(broken)))
    for said in (
        "'model.layers.2.self_attn.o_proj.weight' is missing",
        f"'{MTP}eh_proj.weight' is missing",
        "Layer 4 has no indexer: it shares the ids of layer 2",
        "'model.layers.1.mlp.up_proj.weight' has shape [3, 3]",
        "'surplus' has no place",
    ):
        assert said in names
    assert names.count("\n") == 4
    values = list(value_problems(HfSource(broken), lambda count: None))
    assert len(values) == 2
    assert any("gate.weight' of layer 5 has 1 values" in line for line in values)
    assert any("'model.norm.weight' has 2 values" in line for line in values)


def test_a_config_that_contradicts_itself_is_refused(glm, tmp_path):
    target = convert(glm, tmp_path / "out")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"indexer_types": ["full"] * 3}))
    with pytest.raises(UserError, match="indexer_types has 3 entries for num_hidden_layers=9"):
        name_problems(HfSource(target))


def export(rank, world_size, init_method, path: str, out: str) -> None:
    import torch

    from rlframe.config.schema import LayoutConfig, MtpConfig
    from tests.trainer.training_ranks import join_ranks
    from trainer.models.build import build_chunks
    from trainer.models.exported import write_checkpoint

    layout = LayoutConfig(tensor=world_size, sequence_parallel=world_size > 1, expert=world_size)
    join_ranks(rank, world_size, init_method, layout)
    model = build_chunks(
        hf_config=WITH_MTP,
        layout=layout,
        transformer={},
        role="policy",
        dtype="bfloat16",
        device=torch.device("cpu"),
        seed=0,
        path=path,
        mtp=MtpConfig(mode="detached", steps=2),
    )
    write_checkpoint(model, WITH_MTP, out, max_shard_bytes=70_000)


def test_the_trainer_loads_fp8_files_and_writes_what_they_stand_for(glm, tmp_path):
    """Sharded in and out, with the MTP layer, on two tensor- and expert-parallel ranks."""
    fp8 = convert(glm, tmp_path / "fp8", target="float8", max_shard_bytes=50_000)
    back = convert(fp8, tmp_path / "back", target="bfloat16")
    run_ranks(export, 2, path=str(fp8), out=str(tmp_path / "out"))
    assert_same(read_all(tmp_path / "out"), read_all(back))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 5
    assert name_problems(HfSource(tmp_path / "out")) == []


PEAK = """
import resource, sys
from pathlib import Path
from trainer.convert.sources import HfSource
from trainer.convert.stream import Conversion, Options
from trainer.convert.with_mtp import WithMtp
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Conversion(HfSource(Path(sys.argv[1])), Path(sys.argv[2]), Options(target=sys.argv[3])).run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("float8", 1),
        pytest.param("stored", 4, marks=pytest.mark.slow),
        pytest.param("float8", 4, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_model(tmp_path, target, files):
    """Files of 300 MB in tensors of 32 MiB, one tensor of them of 150 MiB, which is read in parts."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(WITH_MTP))
    file_of = {}
    for number in range(files):
        names = [f"model.layers.{number}.m{i}.weight" for i in range(5)]
        tensors = {name: torch.full((4096, 4096), 0.5, dtype=torch.bfloat16) for name in names}
        if number == 0:
            tensors["model.layers.0.wide.weight"] = torch.ones(19_200, 4096, dtype=torch.bfloat16)
        file = f"part-{number}.safetensors"
        save_file(tensors, source / file)
        file_of |= dict.fromkeys(tensors, file)
    del tensors
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(tmp_path / "out"), target],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    grown_mb = int(done.stdout) * 1024 / 1e6
    assert grown_mb < 150
