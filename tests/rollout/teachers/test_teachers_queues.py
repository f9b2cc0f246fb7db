"""What an engine is given next: by cases, and on a virtual clock against every teacher resident."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.teacher_clock import Arrival, simulate
from rlframe.teaching import ScoreRequest
from rollout.teachers.queues import Queues
from rollout.teachers.schedule import EngineState

RATE = 100.0


def swap_s(engine, loaded, teacher):
    return 2.0


def requests(teacher, count, tokens=100, top_k=0):
    ids = np.zeros(tokens, np.int32)
    return [ScoreRequest(f"{teacher}{n}", teacher, ids, 1, top_k) for n in range(count)]


def turn(queues, loaded, now, turn_s=0.0):
    return queues.next_turn(0, [EngineState(loaded, turn_s=turn_s)], swap_s, now)


def test_an_engine_stays_with_its_teacher_while_there_is_work():
    queues = Queues(RATE)
    queues.add(requests("a", 1) + requests("b", 9), now=0.0)
    assert turn(queues, "a", now=1.0) == "a"
    assert turn(queues, "b", now=1.0) == "b"
    assert turn(queues, None, now=1.0) == "b"  # the largest first


def test_a_swap_waits_until_it_pays():
    queues = Queues(RATE)
    queues.add(requests("b", 1), now=0.0)  # one second of work, two of swap
    assert turn(queues, "a", now=1.9) is None
    assert turn(queues, "a", now=2.0) == "b"
    assert turn(queues, None, now=0.0) == "b"
    queues.add(requests("b", 1), now=0.0)
    assert turn(queues, "a", now=0.0) == "b"


def test_a_turn_ends_for_those_who_have_waited_long():
    queues = Queues(RATE)
    queues.add(requests("b", 1), now=0.0)
    queues.add(requests("c", 1), now=1.0)
    queues.add(requests("a", 1), now=39.0)
    assert turn(queues, "a", now=50.0, turn_s=30.0) == "a"  # its turn is not over
    assert turn(queues, "a", now=39.0, turn_s=45.0) == "a"  # nobody has waited so long
    assert turn(queues, "a", now=50.0, turn_s=45.0) == "b"


def test_overload_is_no_reason_to_swap_for_every_call():
    """All teachers have waited long and more arrives than can be scored: engines score, most of the time."""
    arrivals = [Arrival(n * 0.9, f"t{n % 12}", 200) for n in range(3000)]
    done = simulate(arrivals, engines=2, swap_s=2.0, tokens_per_s=RATE, batch_tokens=400)
    assert done.busy_s / (2 * done.ended_s) > 0.9


def test_what_failed_goes_alone_and_first():
    queues = Queues(RATE)
    queues.add(requests("a", 3), now=0.0)
    first = queues.take("a", 200)
    assert [w.request.id for w in first] == ["a0", "a1"]
    for waiting in reversed(first):
        waiting.attempts += 1
        queues.put_back(waiting)
    taken = [[w.request.id for w in queues.take("a", 1000)] for _ in range(4)]
    assert taken == [["a0"], ["a1"], ["a2"], []]
    assert queues.work_s() == {}


def test_a_call_is_of_one_top_k():
    queues = Queues(RATE)
    queues.add(requests("a", 2) + requests("a", 1, top_k=4), now=0.0)
    assert [len(queues.take("a", 10_000)) for _ in range(2)] == [2, 1]


def test_the_rate_is_learned():
    queues = Queues(RATE)
    for _ in range(30):
        queues.observe(1000, 1.0)
    assert queues.tokens_per_s == pytest.approx(1000, rel=0.01)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.integers(0, 5), st.integers(1, 8)), min_size=1, max_size=40
    ),
    st.integers(1, 3),
    st.floats(0.05, 5.0),
)
def test_whatever_arrives_is_scored_and_not_much_later_than_without_swaps(arrived, engines, swap):
    """Every swap begun has had work or waiting for as long as it takes: at most that is added to the
    work of one engine, and a swap for each teacher at the end."""
    arrivals = [Arrival(at, f"t{t}", 100 * n) for at, t, n in arrived]
    done = simulate(arrivals, engines=engines, swap_s=swap, tokens_per_s=RATE)
    resident = simulate(arrivals, engines=engines, swap_s=0.0, tokens_per_s=RATE)
    assert done.scored == resident.scored == len(arrivals)
    work = sum(a.tokens for a in arrivals) / RATE
    assert done.ended_s <= resident.ended_s + 2 * work + 14 * swap + 1e-6
