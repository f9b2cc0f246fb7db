"""Pins: the same settings have the same hash, other settings another one, and a difference is named."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from rlframe.config import keys
from rlframe.config.schema import RolloutConfig, SamplingConfig
from rlframe.evaluation.pins import (
    ABSENT,
    ONLY_SPEED,
    differences,
    digest,
    pinned,
    tasks_digest,
    without,
)
from rlframe.task_rules import Resources, TaskRules
from rlframe.types import Task

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=5),
    st.lists(st.integers(0, 5), max_size=3),
)
NAMES = st.text("abc", min_size=1, max_size=3)
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda below: st.dictionaries(NAMES, below, max_size=3)), max_size=4
)


@given(TREES, st.randoms())
def test_order_does_not_matter(tree, random):
    def shuffled(value):
        if not isinstance(value, dict):
            return value
        names = list(value)
        random.shuffle(names)
        return {name: shuffled(value[name]) for name in names}

    assert digest(pinned(tree)) == digest(pinned(shuffled(tree)))


@given(TREES, TREES)
def test_hashes_differ_if_and_only_if_a_key_is_named(one, other):
    a, b = pinned(one), pinned(other)
    assert (digest(a) == digest(b)) == (not differences(a, b))


@given(TREES, NAMES, LEAVES)
def test_the_key_that_was_changed_is_named(tree, name, value):
    before = pinned({"g": {**tree, name: {}}})
    after = pinned({"g": {**tree, name: value}})
    assert [d.key for d in differences(before, after)] == [f"g.{name}"]


def test_one_and_one_point_naught_are_the_same_true_is_not():
    assert digest({"a": 1}) == digest({"a": 1.0})
    assert digest({"a": 1}) != digest({"a": True})
    assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})


def test_what_only_changes_the_speed_is_not_pinned():
    slow = RolloutConfig(engines=1, workers=1, engine_args={"kv_cache_dtype": "auto"})
    fast = RolloutConfig(
        engines=8, workers=4, engine_args={"kv_cache_dtype": "auto", "mem_fraction_static": 0.5}
    )
    assert pinned({"rollout": slow}) == pinned({"rollout": fast})
    other = dataclasses.replace(fast, sampling=SamplingConfig(temperature=0.5))
    found = differences(pinned({"rollout": fast}), pinned({"rollout": other}))
    assert [d.key for d in found] == ["rollout.sampling.temperature"]
    assert str(found[0]) == "rollout.sampling.temperature: 1 and 0.5"


def test_what_is_said_to_be_only_speed_exists():
    known = keys.all_keys()
    assert [key for key in ONLY_SPEED if key not in known and not keys.is_free_form(key)] == []


def test_a_setting_that_one_side_lacks():
    (found,) = differences({"guard.judge": "m"}, {})
    assert (found.one, found.other) == ("m", ABSENT)
    assert without([found], ["guard"]) == []
    assert without([found], ["gua"]) == [found]


def test_tasks_are_known_by_what_they_say():
    one = Task(id="a", domain="d", messages=({"role": "user", "content": "2+2"},))
    two = dataclasses.replace(one, id="b")
    assert tasks_digest([one, two]) == tasks_digest([two, one])
    changed = dataclasses.replace(two, messages=({"role": "user", "content": "2+3"},))
    assert tasks_digest([one, two]) != tasks_digest([one, changed])


def test_what_a_task_allows_is_pinned_too():
    one = Task(id="a", domain="d", messages=())
    online = dataclasses.replace(one, rules=TaskRules(network=("*",)))
    larger = dataclasses.replace(one, rules=TaskRules(resources=Resources(memory_mb=1)))
    assert len({tasks_digest([task]) for task in (one, online, larger)}) == 3


def test_a_set_has_one_order():
    """Its own order changes from process to process."""
    assert digest({"a": {"x", "y", "z"}}) == digest({"a": ["x", "y", "z"]})
