"""The mixture of domains follows the steps; the stream stays a function of the index."""

import pytest

from rlframe.distillation.curriculum import CurriculumSource, parse_curriculum
from rlframe.errors import UserError
from rlframe.types import Task


class Source:
    """Every third task is `b`."""

    def train_task(self, index):
        return Task(f"train/{index}", "b" if index % 3 == 0 else "a", ())

    def held_out_tasks(self):
        return [Task("held_out/0", "a", ()), Task("held_out/1", "b", ())]


def source(curriculum, tasks_per_step=40):
    return CurriculumSource(Source(), parse_curriculum(curriculum), tasks_per_step=tasks_per_step)


def test_shares_change_at_their_step():
    found = source({"from_0": {"a": 1}, "from_10": {"a": 1, "b": 3}})
    domains = [found.train_task(i).domain for i in range(800)]
    assert set(domains[:400]) == {"a"}
    for step in range(10, 20):  # evenly within each step
        assert domains[step * 40 : step * 40 + 40].count("b") == pytest.approx(30, abs=2)


def test_no_task_comes_twice_and_any_can_be_asked_for_alone():
    found = source({0: {"a": 1, "b": 1}})
    tasks = [found.train_task(i) for i in range(300)]
    assert len({task.id for task in tasks}) == 300
    assert found.train_task(217) == tasks[217]


class SourceByDomain(Source):
    def train_task_of(self, domain, index):
        return Task(f"train/{index}", domain, ())


def test_a_source_that_draws_by_domain_is_asked_for_it():
    """The same domains, and no task is made in vain."""
    given = parse_curriculum({0: {"a": 1, "b": 3}})
    found = CurriculumSource(SourceByDomain(), given, tasks_per_step=40)
    searched = CurriculumSource(Source(), given, tasks_per_step=40)
    tasks = [found.train_task(i) for i in range(80)]
    assert [task.domain for task in tasks] == [searched.train_task(i).domain for i in range(80)]
    assert [task.id for task in tasks] == [f"train/{i}" for i in range(80)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"soon": {"a": 1}}, "the keys are steps"),
        ({5: {"a": 1}}, "begins at step 5"),
        ({0: {"a": 0}}, "must be a number above 0"),
        ({0: "a"}, "must be shares by domain"),
    ],
)
def test_what_is_no_curriculum_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        parse_curriculum(given)


def test_an_unknown_domain_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"has no domain 'c'; it has a, b"):
        source({0: {"c": 1}})
    assert parse_curriculum({}) is None
