"""Long memory: the answer is the last place told, it needs what stood pages ago, and guessing does not pay."""

from __future__ import annotations

import re

import pytest

from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import UserError
from rlframe.types import Task


def last_place(task: Task) -> str:
    """Read from the pages by a rule of its own."""
    thing, person = re.fullmatch(r"Where is the (\w+) of (\w+)\?", task.data["question"]).groups()  # type: ignore[union-attr]
    told = re.findall(rf"{person} put the {thing} in the (\w+)\.", " ".join(task.data["pages"]))
    return str(told[-1])


def test_the_answer_is_the_last_place_told() -> None:
    source = make_source("long_memory", {"moves": 6}, seed=0, held_out=3)
    check_source(source, name="long_memory")
    tasks = [source.train_task(i) for i in range(60)]
    assert [task.data["answer"] for task in tasks] == [last_place(task) for task in tasks]
    moved = sum(
        task.data["pages"] != [] and " ".join(task.data["pages"]).count("put the") == 10
        for task in tasks
    )
    assert moved == 60
    assert len({task.data["answer"] for task in tasks}) == 8
    for task in tasks:
        assert "put the" not in task.data["pages"][-1]


async def test_one_page_a_turn_then_the_question() -> None:
    source = make_source("long_memory", {"pages": 3}, seed=0, held_out=1)
    task = source.train_task(0)
    for answer, reward in ((f" {task.data['answer'].upper()}. ", 1.0), ("moon", 0.0)):
        env = source.make(task)
        said = [m["content"] for m in await env.start()]
        for _ in range(4):
            result = await env.step("next")
            assert not result.done
            said.append(result.messages[0]["content"])
        assert said[1:4] == task.data["pages"]
        assert said[4] == task.data["question"]
        result = await env.step(answer)
        assert (result.done, result.reward) == (True, reward)


def test_options_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"env.args.page_notes=3: must be at least 6"):
        make_source("long_memory", {"page_notes": 3}, seed=0, held_out=1)
