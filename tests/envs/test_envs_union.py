"""Suites side by side: each gives all of its held-out tasks, under its own name."""

import json

import pytest

from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import UserError

GYM = {"name": "reasoning_gym", "args": {"families": {"gcd": {}}}, "held_out": 6}


@pytest.fixture
def parts(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"{n}?", "answer": str(n)} for n in range(40)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return {"puzzles": GYM, "own": {"name": "dataset", "args": {"path": str(file)}, "held_out": 4}}


def union(parts, **options):
    return make_source("union", {"parts": parts}, **({"seed": 0, "held_out": 16} | options))


async def test_every_part_is_whole_and_plays_its_own_tasks(parts):
    source = union(parts)
    check_source(source, name="union")
    tasks = source.held_out_tasks()
    assert sum(t.id.startswith("puzzles/") for t in tasks) == 6
    assert sum(t.id.startswith("own/") for t in tasks) == 4
    for task in (tasks[0], tasks[-1]):
        env = source.make(task)
        assert await env.start() == task.messages
        result = await env.step(str(task.data.get("answer", "")))
        assert result.done
        await env.close()


def test_a_part_alone_has_the_same_tasks(parts):
    both = {t.id: t for t in union(parts).held_out_tasks()}
    alone = make_source("reasoning_gym", GYM["args"], seed=0, held_out=6).held_out_tasks()
    assert [both[f"puzzles/{t.id}"].messages for t in alone] == [t.messages for t in alone]


def test_train_tasks_and_demonstrations_in_turn(parts):
    source = union(parts)
    assert [source.train_task(i).id.split("/")[0] for i in range(4)] == ["puzzles", "own"] * 2
    assert {d.domain.split("/")[0] for d in source.demonstrations(5)} == {"puzzles", "own"}


def test_held_out_and_seed_are_the_unions_where_not_given(parts):
    del parts["own"]["held_out"]
    source = union({"own": parts["own"]}, held_out=3)
    assert len(source.held_out_tasks()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {"name": "reasoning_gim"}}, r"parts\.a: .*Did you mean 'reasoning_gym'"),
        ({"a": {**GYM, "weight": 2}}, r"parts\.a\.weight"),
        ({"a/b": GYM}, "without a slash"),
        ({"a": {"name": "union", "args": {"parts": {}}}}, "no union itself"),
        ({}, "at least one part"),
    ],
)
def test_mistakes_are_said_by_part(change, message):
    with pytest.raises(UserError, match=message):
        union(change)
