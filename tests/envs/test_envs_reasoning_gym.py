"""The reasoning_gym suite: reproducible, disjoint, scored by the package, wrong settings named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import TaskFault, UserError
from rlframe.interfaces import TaskSource
from rlframe.types import Task

FAMILIES: dict[str, Any] = {
    "aiw": {"task_types": ["siblings"], "task_type_weights": [1.0], "max_entities": 6},
    "rotate_matrix": {"min_n": 2, "max_n": 2, "min_rotations": 1, "max_rotations": 1},
    "spell_backward": {"min_word_len": 3, "max_word_len": 3, "weight": 2},
    "gcd": {"max_value": 9},
}


def make(held_out: int = 40, seed: int = 3, **args: Any) -> TaskSource:
    settings = {"families": FAMILIES, **args}
    return make_source("reasoning_gym", settings, seed=seed, held_out=held_out)


def question(task: Task) -> str:
    return str(task.messages[-1]["content"])


def answer_of(source: TaskSource, task: Task) -> str:
    return str(source._by_name[task.domain]._entry(task.data["number"])["answer"])  # type: ignore[attr-defined]


def test_any_family_can_be_asked_for_a_task() -> None:
    source = make()
    tasks = [source.train_task_of("gcd", i) for i in range(50)]
    assert {task.domain for task in tasks} == {"gcd"}
    assert len({task.id for task in tasks}) == 50
    mixed = [source.train_task(i) for i in range(50)]
    assert [t for t in tasks if t in mixed] == [t for t in mixed if t.domain == "gcd"]


def test_families_are_mixed_by_weight() -> None:
    source = make()
    counts = Counter(source.train_task(i).domain for i in range(500))
    assert counts["spell_backward"] == pytest.approx(200, abs=8)
    assert counts["gcd"] == pytest.approx(100, abs=8)


def test_training_and_held_out_questions_are_disjoint_even_in_tiny_domains() -> None:
    source = make()
    held_out = {question(t) for t in source.held_out_tasks()}
    train = {question(source.train_task(i)) for i in range(3000)}
    shown = {question(Task("", "", d.messages[:1])) for d in source.demonstrations(500)}
    assert len(held_out) == len(source.held_out_tasks())
    assert not held_out & train
    assert not held_out & shown
    gcd = {q for q in train | held_out if "GCD" in q}
    assert len(gcd) <= 81  # of 9 * 9 questions most were seen on one side or the other
    assert any("GCD" in q for q in held_out)


PROGRAM = """
import json, sys
from tests.envs.test_envs_reasoning_gym import make
source = make()
tasks = [source.train_task(i) for i in (0, 1, 2, 3, 77, 10**6)] + list(source.held_out_tasks())
print(json.dumps([[t.id, t.domain, t.messages, dict(t.data), t.seed] for t in tasks]))
"""


def test_the_same_index_is_the_same_task_in_another_process() -> None:
    def made(hash_seed: str) -> Any:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True
        )
        return json.loads(done.stdout)

    assert made("1") == made("2")


def test_other_seeds_make_other_tasks_but_hold_out_the_same_side() -> None:
    one, two = make(seed=1), make(seed=2)
    trained = {question(one.train_task(i)) for i in range(50)}
    assert trained != {question(two.train_task(i)) for i in range(50)}
    assert not trained & {question(t) for t in two.held_out_tasks()}


async def test_the_packages_own_score_is_the_reward() -> None:
    source = make()
    for task in [source.train_task(i) for i in range(20)]:
        right = await source.make(task).step(f" {answer_of(source, task)}\n")
        assert (right.done, right.reward) == (True, 1.0)
        assert (await source.make(task).step("no idea")).reward < 1.0


async def test_partial_credit_can_be_switched_off() -> None:
    def spelling(**args: Any) -> tuple[TaskSource, Task]:
        source = make(families={"spell_backward": {"min_word_len": 4, "max_word_len": 4}}, **args)
        return source, source.train_task(0)

    source, task = spelling()
    half = answer_of(source, task)[:2] + "##"
    assert (await source.make(task).step(half)).reward == pytest.approx(0.5)
    source, task = spelling(partial_credit=False)
    assert (await source.make(task).step(half)).reward == 0.0


async def test_a_wrong_answer_may_be_tried_again() -> None:
    source = make(max_turns=2, retry_reward=0.25, retry_message="No.")
    task = source.train_task(0)
    env = source.make(task)
    first = await env.step("wrong")
    assert (first.done, first.reward) == (False, 0.0)
    assert first.messages == ({"role": "user", "content": "No."},)
    assert (await env.step(answer_of(source, task))).reward == 0.25


async def test_answers_in_tags() -> None:
    source = make(answer_in="tag", system="Think.")
    task = source.train_task(0)
    assert task.messages[0] == {"role": "system", "content": "Think."}
    answer = answer_of(source, task)
    assert (await source.make(task).step(f"hm <answer>{answer}</answer>")).reward == 1.0
    assert (await source.make(task).step(answer)).reward == 0.0
    assert source.demonstrations(1)[0].messages[-1]["content"].startswith("<answer>")


async def test_another_version_of_the_package_is_noticed() -> None:
    source = make()
    task = source.train_task(0)
    other = Task(task.id, task.domain, task.messages, {**task.data, "question": "another"})
    with pytest.raises(TaskFault, match="same version"):
        await source.make(other).step("x")


async def test_a_scorer_that_chokes_on_an_answer_scores_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make(families={"gcd": {}})
    from reasoning_gym.arithmetic.gcd import GCDDataset

    def choke(*_: object) -> float:
        raise RecursionError

    monkeypatch.setattr(GCDDataset, "score_answer", choke)
    assert (await source.make(source.train_task(0)).step("((((")).reward == 0.0


def test_demonstrations_mark_wrong_first_answers_as_untrained() -> None:
    source = make(demonstration_retry_share=0.5)
    shown = source.demonstrations(400)
    retries = [d for d in shown if d.untrained]
    assert 150 < len(retries) < 250
    for d in retries:
        assert [m["role"] for m in d.messages] == ["user", "assistant", "user", "assistant"]
        assert d.untrained == (1,)
        assert d.messages[1]["content"] != d.messages[3]["content"]
    assert all(len(d.messages) == 2 for d in shown if not d.untrained)
    assert source.demonstrations(400) == shown
    assert source.demonstrations(10) == shown[:10]


def test_demonstrations_of_a_family_repeat_after_its_limit() -> None:
    source = make(families={"gcd": {"demonstrations": 5}, "lcm": {}})
    shown = source.demonstrations(200)
    asked = {
        d.domain: {d2.messages[0]["content"] for d2 in shown if d2.domain == d.domain}
        for d in shown
    }
    assert len(asked["gcd"]) <= 5
    assert len(asked["lcm"]) > 80


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"families": {}}, "at least one family"),
        ({"families": {"gdc": {}}}, "Did you mean 'gcd'"),
        ({"families": {"gcd": {"max_values": 3}}}, "gcd.max_values.*Did you mean 'max_value'"),
        ({"families": {"gcd": {"seed": 3}}}, "gcd.seed"),
        ({"families": {"gcd": {"min_numbers": 1}}}, "min_numbers must be at least 2"),
        ({"families": {"gcd": {"weight": 0}}}, "gcd.weight=0.*above 0"),
        ({"families": {"gcd": {"demonstrations": -1}}}, "gcd.demonstrations"),
        ({"families": {"gcd": 3}}, "gcd=3"),
        ({"families": {"word_ladder": {}}}, "differ from process to process"),
        ({"families": {"aiw": {"task_types": ["sibling"]}}}, "not a valid TaskType"),
        ({"familys": {}}, "familys.*Did you mean 'families'"),
        ({}, "env.args.families: is required"),
        ({"families": FAMILIES, "max_turns": "2"}, "max_turns='2': must be an integer"),
        ({"families": FAMILIES, "held_out_share": 1.0}, "held_out_share"),
        ({"families": FAMILIES, "answer_in": "box"}, "text or tag"),
    ],
)
def test_wrong_settings_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_source("reasoning_gym", args, seed=0, held_out=8)


def test_a_family_with_one_question_is_refused() -> None:
    only = {"gcd": {"min_value": 1, "max_value": 2, "min_numbers": 2, "max_numbers": 2}}
    with pytest.raises(UserError, match="too few different questions"):
        check_source(make(families=only, held_out_share=0.01), name="reasoning_gym")


def test_a_family_without_answers_can_not_be_demonstrated() -> None:
    with pytest.raises(UserError, match="nothing to demonstrate"):
        make(families={"propositional_logic": {}}).demonstrations(1)


def test_the_source_passes_the_start_up_check() -> None:
    check_source(make(), name="reasoning_gym")
