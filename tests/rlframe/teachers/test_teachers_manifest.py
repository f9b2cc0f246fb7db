"""Each thing that can be wrong with teachers, and the message that says which."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_models import save_tiny_qwen3

from rlframe.cluster.demand import parts_of
from rlframe.config.check import check_config
from rlframe.config.compose import load_config
from rlframe.config.schema import TeachersConfig
from rlframe.errors import UserError
from rlframe.teachers.check import check_lengths, check_memory, check_vocabularies, read_checkpoints
from rlframe.teachers.groups import check_groups, engine_groups
from rlframe.teachers.manifest import parse_manifest, read_manifest
from rlframe.teachers.vocabulary import differences, read_vocabulary

SUMS = {"name": "sums", "checkpoint": "x", "domains": ["chain_sum"]}


def manifest_of(*teachers):
    return parse_manifest({"teachers": list(teachers)}, path="m.yaml")


def save_vocabulary(directory: Path, tokens: dict[str, int], added=()) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    described = {"model": {"vocab": tokens}, "added_tokens": list(added)}
    (directory / "tokenizer.json").write_text(json.dumps(described))
    return directory


@pytest.fixture(scope="module")
def tokens():
    return {f"t{i}": i for i in range(304)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokens) -> Path:
    directory = save_tiny_qwen3(tmp_path_factory.mktemp("teacher"))
    return save_vocabulary(directory, tokens)


def test_a_manifest_is_read(tmp_path):
    path = tmp_path / "teachers.yaml"
    path.write_text(yaml.safe_dump({"teachers": [{**SUMS, "weight": 2}]}))
    teacher = read_manifest(str(path))["sums"]
    assert (teacher.domains, teacher.weight, teacher.engine_group) == (
        ("chain_sum",),
        2.0,
        "default",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpont": "x"}, "unknown key 'checkpont'. Did you mean 'checkpoint'?"),
        ({"name": ""}, "name=''"),
        ({"name": "a/b"}, "must be letters"),
        ({"checkpoint": ""}, "a checkpoint or a url"),
        ({"url": "http://h:1"}, "and not both"),
        ({"domains": []}, "domains=[]"),
        ({"domains": [3]}, "domains=[3]"),
        ({"weight": 0}, "weight=0 must be a number above 0"),
        ({"weight": True}, "weight=True"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"tokenizer": "x"}, "tokenizer is for a url"),
        ({"engine_group": 3}, "engine_group=3 must be text"),
        ({"checkpoint": "", "url": "host:1"}, "must begin with http"),
        ({"checkpoint": "", "url": "http://h:1", "api": "completions"}, "needs model"),
        ({"api": "openai"}, "must be one of sglang, completions"),
    ],
)
def test_each_wrong_line_is_named(changes, said):
    with pytest.raises(UserError, match=r"m\.yaml: teacher") as error:
        manifest_of({**SUMS, **changes})
    assert said in str(error.value)


@pytest.mark.parametrize("described", [None, [], {"teachers": {}}, {"teachers": []}])
def test_a_file_that_lists_nobody_is_refused(described):
    with pytest.raises(UserError, match=r"m\.yaml"):
        parse_manifest(described, path="m.yaml")


def test_two_teachers_of_one_name_are_refused():
    with pytest.raises(UserError, match="2 teachers have the name 'sums'"):
        manifest_of(SUMS, SUMS)


def test_a_domain_is_taught_by_those_who_name_it_most_exactly():
    manifest = manifest_of(
        SUMS,
        {"name": "math", "checkpoint": "x", "domains": ["math"]},
        {"name": "all", "checkpoint": "x", "domains": ["*"]},
    )
    taught = {d: [t.name for t in manifest.of_domain(d)] for d in ("chain_sum", "math/x", "y")}
    assert taught == {"chain_sum": ["sums"], "math/x": ["math"], "y": ["all"]}
    assert manifest.check_domains(["chain_sum", "math/x"]) == ["all"]


def test_a_domain_without_a_teacher_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'chain_sums' of the run\. Did you mean 'chain_sum'"):
        manifest_of(SUMS).check_domains(["chain_sums"])


def test_tokens_are_compared_one_by_one(tmp_path, checkpoint, tokens):
    manifest = manifest_of({**SUMS, "checkpoint": str(checkpoint)})
    read = read_checkpoints(manifest)
    check_vocabularies(manifest, read, student_tokenizer=checkpoint)
    swapped = {**tokens, "t7": 8, "t8": 7, "t300": 999}
    student = save_vocabulary(tmp_path / "student", swapped)
    with pytest.raises(UserError) as error:
        check_vocabularies(manifest, read, student_tokenizer=student)
    assert "id 7 is 't8' to the student, 't7' to the teacher" in str(error.value)
    assert "id 8 is 't7'" in str(error.value)
    assert "id 999 is 't300' to the student, unknown to the teacher" in str(error.value)


def test_added_tokens_and_unigram_lists_count(tmp_path):
    added = [{"id": 2, "content": "<end>"}]
    plain = save_vocabulary(tmp_path / "a", {"x": 0, "y": 1}, added)
    listed = tmp_path / "b"
    listed.mkdir()
    (listed / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": [["x", -1.0], ["y", -2.0]]}, "added_tokens": []})
    )
    student, teacher = (read_vocabulary(d, where="here") for d in (plain, listed))
    assert differences(teacher, student) == []  # what only the teacher has does no harm
    assert differences(student, teacher) == [
        "id 2 is '<end>' to the student, unknown to the teacher"
    ]


def test_a_model_too_small_for_the_students_ids_is_refused(tmp_path, checkpoint, tokens):
    more = save_vocabulary(tmp_path / "student", {**tokens, "beyond": 304})
    small = save_vocabulary(tmp_path / "teacher", {**tokens, "beyond": 304})
    for file in checkpoint.glob("*"):
        if file.name != "tokenizer.json":
            (small / file.name).symlink_to(file)
    manifest = manifest_of({**SUMS, "checkpoint": str(small)})
    with pytest.raises(UserError, match=r"vocab_size=304, the student's token ids go up to 304"):
        check_vocabularies(manifest, read_checkpoints(manifest), student_tokenizer=more)


@pytest.mark.parametrize(
    ("broken", "said"),
    [("config.json", "no config.json"), ("model.safetensors", "no .safetensors")],
)
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path, checkpoint, broken, said):
    for file in checkpoint.glob("*"):
        if file.name != broken:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match=f"teacher 'sums': checkpoint: .*{said}"):
        read_checkpoints(manifest_of({**SUMS, "checkpoint": str(tmp_path)}))


def test_a_checkpoint_cut_short_is_refused(tmp_path, checkpoint):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    whole = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cut short"):
        read_checkpoints(manifest_of({**SUMS, "checkpoint": str(tmp_path)}))


def test_only_what_computes_alike_swaps(tmp_path, checkpoint):
    def save(name, **fields):
        return save_tiny_qwen3(tmp_path / name, seed=3, **fields)

    same, deeper = save("same", eos_token_id=5), save("deeper", num_hidden_layers=3)
    other_rope = save("rope", rope_theta=500.0)
    manifest = manifest_of(
        *({**SUMS, "name": d.name, "checkpoint": str(d)} for d in (checkpoint, same)),
        *({**SUMS, "name": d.name, "checkpoint": str(d)} for d in (deeper, other_rope)),
    )
    read = {name: c.architecture for name, c in read_checkpoints(manifest).items()}
    assert read[checkpoint.name] == read["same"]
    assert len(set(read.values())) == 3


def test_a_context_shorter_than_a_trace_is_refused(checkpoint):
    manifest = manifest_of({**SUMS, "checkpoint": str(checkpoint)})
    read = read_checkpoints(manifest)
    check_lengths(manifest, read, max_tokens=2048)
    with pytest.raises(UserError, match="'sums' reads at most 2048 tokens"):
        check_lengths(manifest, read, max_tokens=2049)


def test_memory_that_engines_would_take(checkpoint):
    manifest = manifest_of({**SUMS, "checkpoint": str(checkpoint)})
    read, groups = read_checkpoints(manifest), engine_groups(TeachersConfig(engines=2))
    check_memory(manifest, read, groups, free_gib=1.0, gpu_gib=0)
    with pytest.raises(UserError, match=r"lower teachers\.engines"):
        check_memory(manifest, read, groups, free_gib=1e-4, gpu_gib=0)
    with pytest.raises(UserError, match=r"'sums' has .* GPUs of 0 GiB"):
        check_memory(manifest, read, groups, free_gib=1.0, gpu_gib=1e-6)


def test_groups():
    config = TeachersConfig(
        groups={"large": {"engines": 2, "gpus_per_engine": 8, "engine_args": {"tp_size": 8}}},
        engine_args={"max_total_tokens": 10},
    )
    default, large = engine_groups(config)
    assert (default.engines, large.engines, large.gpus_per_engine) == (1, 2, 8)
    assert large.engine_args == {"max_total_tokens": 10, "tp_size": 8}
    with pytest.raises(UserError, match=r"no such group\. Did you mean 'large'"):
        check_groups(manifest_of({**SUMS, "engine_group": "larg"}), [default, large])


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"default": {}}, "teachers.engines"),
        ({"a": 3}, "must be a dictionary"),
        ({"a": {"engine": 3}}, "Did you mean 'engines'"),
        ({"a": {"engines": True}}, "must be int"),
    ],
)
def test_a_wrong_group_is_refused(groups, said):
    with pytest.raises(UserError, match=said):
        engine_groups(TeachersConfig(groups=groups))


def test_a_run_checks_its_teachers_and_asks_for_their_engines(tmp_path, checkpoint):
    path = tmp_path / "teachers.yaml"
    path.write_text(yaml.safe_dump({"teachers": [SUMS]}))
    given = [f"teachers.manifest={path}", "teachers.engines=2", "+teachers.groups.b.engines=3"]
    given += ["algorithm=opd", "algorithm.teachers_on=engines", f"model.path={checkpoint}"]
    config = load_config(["experiment=smoke", *given])
    parts = {p.name: p.count for p in parts_of(config, device="cpu")}
    assert (parts["teacher"], parts["teacher/b"]) == (2, 3)
    with pytest.raises(UserError, match=r"checkpoint: there is no directory 'x'"):
        check_config(config)
