"""A task's rules: JSON there and back, hashable, and what is wrong in them is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.errors import UserError
from rlframe.task_rules import Resources, TaskRules, task_rules
from rlframe.types import Task

PATHS = st.lists(st.text(min_size=1, max_size=20), max_size=3).map(tuple)
SIZES = st.integers(0, 10**8)
RESOURCES = st.builds(
    Resources,
    cpus=st.floats(0, 64),
    memory_mb=SIZES,
    processes=SIZES,
    disk_mb=SIZES,
    seconds=st.floats(0, 1e6),
)


@given(st.builds(TaskRules, PATHS, PATHS, PATHS, PATHS, RESOURCES))
def test_json_there_and_back(rules: TaskRules) -> None:
    again = task_rules(json.loads(json.dumps(rules.to_json())))
    assert again == rules
    assert hash(again) == hash(rules)


def test_network_by_word() -> None:
    assert task_rules({"network": "none"}).network == ()
    assert task_rules({"network": "public"}).network == ("*",)


def test_a_task_without_rules_is_not_guarded() -> None:
    assert not Task(id="1", domain="d", messages=()).rules.guarded
    assert TaskRules(forbidden_sources=("humanize",)).guarded


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"protected_path": []}, "did you mean protected_paths"),
        ({"protected_paths": "/tests"}, "rules.protected_paths: a list of strings"),
        ({"read_only_paths": [""]}, "rules.read_only_paths"),
        ({"network": "all"}, "none, public or a list"),
        ({"resources": {"memory": 1}}, "rules.resources.memory: no such key"),
        ({"resources": {"cpus": -1}}, "rules.resources.cpus"),
        ({"resources": {"cpus": float("nan")}}, "rules.resources.cpus"),
        ({"resources": 3}, "rules.resources: a mapping"),
    ],
)
def test_bad_rules_are_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        task_rules(given)
