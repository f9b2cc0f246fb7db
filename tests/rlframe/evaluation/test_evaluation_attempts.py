"""What is missing of an evaluation: whatever was stored before a kill stands, the lost is made again."""

from hypothesis import given
from hypothesis import strategies as st

from rlframe.evaluation.attempts import LOST, plan, slots_of
from rlframe.evaluation.drive import drive
from rlframe.types import Status, Task, Trajectory

IDS = st.lists(
    st.text("ab/+0 1", min_size=1, max_size=6).filter(lambda t: t.strip("/")),
    min_size=1,
    max_size=4,
    unique=True,
)


def tasks_of(ids):
    return [Task(id=f"s/{i}", domain="d", messages=()) for i in ids]


class World:
    """A service that ends attempts as it is told, until it is killed; the store is what stays."""

    def __init__(self, statuses, kill_after):
        self.statuses, self.left = statuses, kill_after
        self.stored: dict[str, Status] = {}
        self.queue: list[str] = []
        self.made = 0
        self.largest = 0

    def admit(self, ids):
        pass

    def put(self, trajectories):
        for t in trajectories:
            assert t.id not in self.stored, "an attempt that ended was made again"
            self.stored[t.id] = t.status

    def submit(self, requests):
        self.queue += [r.id for r in requests]
        self.largest = max(self.largest, len(self.queue))

    def collect(self, timeout_s):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        attempt_id = self.queue.pop(0)
        status = self.statuses[self.made % len(self.statuses)]
        self.made += 1
        return [Trajectory(attempt_id, "t", "d", status, ())]


@given(
    IDS,
    st.integers(1, 3),
    st.lists(st.sampled_from(list(Status)), min_size=1, max_size=7),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_killed_at_any_moment_each_attempt_ends_up_standing_once(
    ids, repeats, statuses, kills, window
):
    slots = slots_of(tasks_of(ids), repeats)
    world = World([*statuses, Status.COMPLETED], -1)
    for kill in kills:
        world.left, world.queue = kill, []
        try:
            drive(
                world,
                world,
                plan(slots, world.stored.items()),
                window=window,
                progress=lambda n: None,
            )
        except KeyboardInterrupt:
            continue
    world.statuses = [Status.COMPLETED]
    world.left, world.queue = -1, []
    drive(world, world, plan(slots, world.stored.items()), window=window, progress=lambda n: None)
    done = plan(slots, world.stored.items())
    assert done.missing == []
    assert done.lost == {}
    assert sorted(s.first_id for s in done.standing.values()) == sorted(s.first_id for s in slots)
    assert all(world.stored[i] not in LOST for i in done.standing)
    assert world.largest <= window


def test_a_lost_attempt_is_made_again_under_an_id_of_its_own():
    slots = slots_of(tasks_of(["a"]), 2)
    stored = [("eval/s/a/0", Status.INFRA_ERROR), ("eval/s/a/1", Status.FAILED)]
    again = plan(slots, stored)
    assert [r.id for r in again.missing] == ["eval/s/a/0+1"]
    assert list(again.lost) == ["eval/s/a/0"]
    assert list(again.standing) == ["eval/s/a/1"], "a fault of the task is a result"
    thrice = plan(slots, [*stored, ("eval/s/a/0+1", Status.ABORTED)])
    assert [r.id for r in thrice.missing] == ["eval/s/a/0+2"]


def test_every_task_comes_once_before_any_comes_twice():
    slots = slots_of(tasks_of(["a", "b"]), 2)
    assert [r.id for r in plan(slots, []).missing] == [
        "eval/s/a/0",
        "eval/s/b/0",
        "eval/s/a/1",
        "eval/s/b/1",
    ]
