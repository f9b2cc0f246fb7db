"""Plans against brute force: every way to give whole teachers to engines, and the bound below any plan."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.teachers.schedule import EngineState, plan

SWAP_S = 1.0


def constant(engine, loaded, teacher):
    return SWAP_S


def brute_force(work, engines, swap_s):
    """The least makespan over all assignments of whole teachers."""
    best = float("inf")
    for owners in product(range(len(engines)), repeat=len(work)):
        ends = [engine.free_s for engine in engines]
        for (teacher, seconds), e in zip(work.items(), owners, strict=True):
            loaded = engines[e].loaded
            ends[e] += seconds + (0 if loaded == teacher else swap_s(e, loaded, teacher))
        best = min(best, max(ends))
    return best


def check_is_a_plan(made, work, engines, swap_s):
    """All work is given out, and the ends are what the turns add up to."""
    given_out = dict.fromkeys(work, 0.0)
    for turns, engine, end in zip(made.turns, engines, made.ends_s, strict=True):
        clock, loaded = engine.free_s, engine.loaded
        assert len({t for t, _ in turns}) == len(turns), "an engine takes each teacher once"
        for teacher, seconds in turns:
            clock += seconds + (0 if loaded == teacher else swap_s(0, loaded, teacher))
            loaded = teacher
            given_out[teacher] += seconds
        assert clock == pytest.approx(end)
    assert given_out == pytest.approx(work)


@st.composite
def cases(draw):
    count = draw(st.integers(1, 6))
    work = {f"t{i}": draw(st.floats(0.01, 20.0)) for i in range(count)}
    names = st.sampled_from([*work, "other", None])
    engines = [
        EngineState(draw(names), draw(st.sampled_from([0.0, 0.0, 1.5])))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return work, engines


@settings(max_examples=300)
@given(cases())
def test_a_plan_is_never_more_than_a_swap_above_the_optimum(case):
    work, engines = case
    made = plan(work, engines, constant)
    check_is_a_plan(made, work, engines, constant)
    covered = {e.loaded for e in engines} & set(work)
    # Nothing is done before all work and the swaps that nobody can save are spread evenly.
    bound = (
        sum(work.values()) + SWAP_S * (len(work) - len(covered)) + sum(e.free_s for e in engines)
    ) / len(engines)
    optimum = min(brute_force(work, engines, constant), bound + 2 * SWAP_S)
    assert made.makespan_s <= max(optimum, bound) + SWAP_S + 1e-6


@settings(max_examples=200)
@given(cases())
def test_where_swaps_are_dear_as_few_are_made_as_can_be(case):
    """A swap costs more than all work: an optimum has the least number of swaps on its busiest engine."""
    work, engines = case
    dear = 1e4

    def swap_s(engine, loaded, teacher):
        return dear

    made = plan(work, engines, swap_s)
    assert made.makespan_s <= brute_force(work, engines, swap_s) + sum(work.values()) / 2 + 1e-6


def test_loaded_teachers_stay_where_they_are():
    engines = [EngineState("a"), EngineState("b")]
    made = plan({"a": 5.0, "b": 5.0, "c": 2.0, "d": 2.0}, engines, constant)
    assert [turns[0][0] for turns in made.turns] == ["a", "b"]
    assert made.makespan_s == pytest.approx(8.0)


def test_the_order_of_loading_saves_a_swap_for_each_engine_between_batches():
    """What an engine ends with is what it begins the next batch with: 12 teachers, 2 engines, 10 swaps."""
    work = {f"t{i}": 4.0 for i in range(12)}
    engines = [EngineState(None), EngineState(None)]
    swaps = []
    for _ in range(3):
        made = plan(work, engines, constant)
        swaps.append(
            sum(
                teacher != engine.loaded
                for turns, engine in zip(made.turns, engines, strict=True)
                for teacher, _ in turns
            )
        )
        engines = [EngineState(turns[-1][0]) for turns in made.turns]
    assert swaps == [12, 10, 10]


def test_one_teachers_work_is_spread_over_engines_where_that_pays():
    engines = [EngineState("a"), EngineState(None)]
    assert plan({"a": 10.0}, engines, constant).makespan_s == pytest.approx(5.5)
    assert plan({"a": 0.9}, engines, constant).turns[1] == []


def test_a_teacher_that_an_engine_can_never_load_goes_elsewhere():
    def swap_s(engine, loaded, teacher):
        return float("inf") if (engine, teacher) == (0, "b") else SWAP_S

    made = plan({"a": 1.0, "b": 9.0}, [EngineState(None), EngineState("a")], swap_s)
    assert [[t for t, _ in turns] for turns in made.turns] == [["a"], ["b"]]
    nowhere = plan({"c": 1.0}, [EngineState(None)], lambda *_: float("inf"))
    assert nowhere.turns == [[]]


def test_many_teachers_are_planned_near_the_bound():
    work = {f"t{i}": 1.0 + i % 7 for i in range(40)}
    engines = [EngineState(None)] * 8
    made = plan(work, engines, constant)
    bound = (sum(work.values()) + SWAP_S * len(work)) / len(engines)
    assert made.makespan_s <= 1.05 * bound
