"""The producer against a scripted service: admission, staleness bound, failures, resume.

The service and the ledger are in-memory stand-ins, because the subject is the order of events; the
real ones are exercised end to end in tests/e2e.
"""

import queue
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rlframe.errors import RunError
from rlframe.intake import Intake
from rlframe.producer import Producer, request_id
from rlframe.types import Reward, Status, Task, Trace, Trajectory


class Source:
    def train_task(self, index: int) -> Task:
        return Task(id=f"t{index}", domain="d", messages=())

    def held_out_tasks(self) -> Sequence[Task]:
        return [Task(id=f"h{i}", domain="d", messages=()) for i in range(3)]


class Service:
    """Finishes attempts when the test says so, and never before they were asked for."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.early: dict[str, Status] = {}
        self.order = threading.Lock()
        self.finished: queue.Queue = queue.Queue()
        self.auto: Status | None = None
        self.version = 0
        self.spoil = {}

    def submit(self, requests) -> None:
        asked = [r.id for r in requests]
        with self.order:
            self.submitted += asked
            due = [(i, self.early.pop(i, self.auto)) for i in asked]
        for known, status in due:
            if status:
                self.end(known, status)

    def finish(self, trajectory_id: str, status: Status = Status.COMPLETED) -> None:
        with self.order:
            if trajectory_id not in self.submitted:
                self.early[trajectory_id] = status
                return
        self.end(trajectory_id, status)

    def end(self, trajectory_id: str, status: Status) -> None:
        trace = Trace(
            token_ids=np.arange(4, dtype=np.int32),
            loss_mask=np.array([False, False, True, True]),
            rollout_logprobs=np.array([0, 0, -1, -1], np.float32),
            versions=np.array([-1, -1, self.version, self.version], np.int32),
        )
        whole = Trajectory(
            id=trajectory_id,
            task_id="t",
            domain="d",
            status=status,
            traces=(trace,),
            rewards=(Reward(1.0),),
            info={"error": "scripted"} if not status.is_trainable else {},
        )
        self.finished.put(self.spoil.get(trajectory_id, lambda t: t)(whole))

    def cancel(self, ids) -> None:
        for known in ids:
            self.finish(known, Status.ABORTED)

    def collect(self, timeout_s: float) -> list[Trajectory]:
        try:
            return [self.finished.get(timeout=0.02)]
        except queue.Empty:
            return []


def long_trace(length: int, *, version: int = 0, actions: bool = True) -> Trace:
    mask = np.arange(length) >= 2 if actions else np.zeros(length, np.bool_)
    return Trace(
        token_ids=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1, 0).astype(np.float32),
        versions=np.where(mask, version, -1).astype(np.int32),
    )


class Ledger:
    def __init__(self) -> None:
        self.ids: list[str] = []
        self.rows: dict[str, Trajectory] = {}
        self.batches: dict[int, list[str]] = {}
        self.dropped: dict[str, str] = {}

    def admit(self, ids) -> None:
        self.ids += ids

    def put(self, trajectories) -> None:
        self.rows.update({t.id: t for t in trajectories})

    def drop(self, trajectory_id, reason) -> None:
        self.dropped[trajectory_id] = reason

    def record_batch(self, step, ids) -> None:
        assert all(i in self.rows for i in ids), "a batch of what is not in the store"
        self.batches[step] = list(ids)

    def batch(self, step):
        ids = self.batches.get(step)
        return None if ids is None else [self.rows[i] for i in ids]

    def pending(self):
        used = {i for ids in self.batches.values() for i in ids} | set(self.dropped)
        return [t for i, t in self.rows.items() if i not in used]

    def unfinished(self):
        return [i for i in self.ids if i not in self.rows]

    def admitted(self) -> int:
        return len(self.ids)


@pytest.fixture
def make():
    made = []

    def build(service, ledger, **options) -> Producer:
        defaults = {"batch_trajectories": 4, "max_staleness": 0, "version": 0}
        defaults["intake"] = Intake(max_trace_tokens=8)
        producer = Producer(service, ledger, Source(), **(defaults | options))
        producer.start()
        made.append(producer)
        return producer

    yield build
    for producer in made:
        producer.close()


def ids(trajectories) -> list[str]:
    return [t.id for t in trajectories]


def test_on_policy_admits_one_batch_a_version(make):
    service, ledger = Service(), Ledger()
    service.auto = Status.COMPLETED
    producer = make(service, ledger)
    for step in range(3):
        taken = producer.take(step)
        assert ids(taken) == [request_id(i) for i in range(4 * step, 4 * step + 4)]
        assert len(service.submitted) == 4 * (step + 1)
        service.version = step + 1
        producer.release(step + 1)


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_staleness_is_bounded_and_slots_are_capacity(make, max_staleness):
    service, ledger = Service(), Ledger()
    service.auto = Status.COMPLETED
    producer = make(service, ledger, max_staleness=max_staleness)
    for step in range(8):
        taken = producer.take(step)
        assert all(step - t.oldest_version <= max_staleness for t in taken)
        assert len(service.submitted) <= 4 * (step + 1 + max_staleness)
        service.version = step + 1
        producer.release(step + 1)


def test_a_slow_attempt_is_waited_for_rather_than_grown_stale(make):
    service, ledger = Service(), Ledger()
    producer = make(service, ledger, max_staleness=1)
    slow = request_id(0)
    result: list = []
    first = threading.Thread(target=lambda: result.append(producer.take(0)))
    first.start()
    for i in range(1, 8):
        service.finish(request_id(i))
    first.join(10)
    assert slow not in ids(result[0])
    producer.release(1)
    second = threading.Thread(target=lambda: result.append(producer.take(1)))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the batch must wait for the attempt that would become too stale"
    service.finish(slow)
    second.join(10)
    assert slow in ids(result[1])


def test_failed_attempts_never_train_and_are_replaced(make):
    service, ledger = Service(), Ledger()
    producer = make(service, ledger)
    result: list = []
    taking = threading.Thread(target=lambda: result.append(producer.take(0)))
    taking.start()
    for i, status in enumerate(
        [Status.COMPLETED, Status.INFRA_ERROR, Status.TRUNCATED_LENGTH, Status.FAILED]
    ):
        service.finish(request_id(i), status)
    service.finish(request_id(4))
    service.finish(request_id(5))
    taking.join(10)
    assert ids(result[0]) == [request_id(i) for i in (0, 2, 4, 5)]
    assert set(ledger.dropped) == {request_id(1), request_id(3)}
    assert "scripted" in ledger.dropped[request_id(3)]
    ended = producer.ended()
    assert ended["attempts/ended"] == 6.0
    assert ended["attempts/infra_error_share"] == ended["attempts/failed_share"] == 1 / 6
    assert producer.ended() == {}, "counted once"


def test_a_run_in_which_everything_fails_ends_with_the_reason(make):
    service, ledger = Service(), Ledger()
    service.auto = Status.FAILED
    producer = make(service, ledger)
    with pytest.raises(RunError, match=r"100% of the last 8 attempts.*scripted"):
        producer.take(0)


def test_attempts_may_be_lost_up_to_the_share(make):
    """Of the last eight, six may fail and seven may not."""
    service, ledger = Service(), Ledger()
    producer = make(service, ledger)
    order = [Status.FAILED] * 6 + [Status.COMPLETED] * 2 + [Status.FAILED] * 6 + [Status.COMPLETED]
    for i, status in enumerate(order):
        service.finish(request_id(i), status)
    service.finish(request_id(len(order)), Status.COMPLETED)
    assert len(producer.take(0)) == 4


def test_what_is_refused_is_replaced_and_counted(make):
    """A trace beyond the cap, a version that nobody published, no action, a reward that is no number."""
    service, ledger = Service(), Ledger()
    producer = make(service, ledger, intake=Intake(max_trace_tokens=4), batch_trajectories=2)
    service.spoil = {
        request_id(0): lambda t: replace(t, traces=(long_trace(5),)),
        request_id(1): lambda t: replace(t, traces=(long_trace(4, version=2),)),
        request_id(2): lambda t: replace(t, traces=(long_trace(4, actions=False),)),
        request_id(3): lambda t: replace(t, rewards=(Reward(float("nan")),)),
        request_id(4): lambda t: replace(t, rewards=(Reward(1.0, position=9),)),
    }
    service.auto = Status.COMPLETED
    with pytest.raises(RunError, match=r"rollout\.max_lost_share"):
        producer.take(0)
    reasons = [ledger.dropped[request_id(i)] for i in range(4)]
    for reason, said in zip(
        reasons, ("5 tokens", "version 2", "no action", "not finite"), strict=True
    ):
        assert said in reason
    producer = make(service, Ledger(), intake=Intake(max_trace_tokens=4), max_lost_share=1.0)
    assert ids(producer.take(0)) == [request_id(i) for i in (5, 6, 7, 8)]
    assert producer.ended()["attempts/failed_share"] == 5 / 9


def test_resume_gives_recorded_batches_again_and_loses_nothing(make):
    service, ledger = Service(), Ledger()
    service.auto = Status.COMPLETED
    first = make(service, ledger)
    batches = {}
    for step in range(3):
        batches[step] = ids(first.take(step))
        first.release(step + 1)
    first.close()
    # killed in step 3: two of its attempts had finished, two had not
    ledger.admit([request_id(i) for i in range(12, 16)])
    for i in (12, 14):
        service.end(request_id(i), Status.COMPLETED)
        ledger.put([service.finished.get()])

    again = Service()
    again.auto = Status.COMPLETED
    resumed = make(again, ledger, version=1)  # the checkpoint was taken after step 1
    assert [ids(resumed.take(step)) for step in (1, 2)] == [batches[1], batches[2]]
    assert again.submitted == [], "nothing is rolled out while recorded steps are repeated"
    resumed.release(3)
    assert ids(resumed.take(3)) == [request_id(i) for i in range(12, 16)]
    assert again.submitted == [request_id(13), request_id(15)]


def test_evaluations_never_enter_the_ledger(make):
    service, ledger = Service(), Ledger()
    service.auto = Status.COMPLETED
    producer = make(service, ledger)
    held_out = producer.evaluate(Source().held_out_tasks(), tag="0")
    assert ids(held_out) == ["eval/0/h0", "eval/0/h1", "eval/0/h2"]
    assert ledger.rows == {}


def test_cancelled_attempts_are_replaced_and_no_failure(make):
    """More of them may come than attempts may fail."""
    service, ledger = Service(), Ledger()
    producer = make(service, ledger)
    result: list = []
    taking = threading.Thread(target=lambda: result.append(producer.take(0)))
    taking.start()
    service.cancel([request_id(i) for i in range(20)])
    for i in range(20, 24):
        service.finish(request_id(i))
    taking.join(10)
    assert ids(result[0]) == [request_id(i) for i in range(20, 24)]
    assert set(ledger.dropped) == {request_id(i) for i in range(20)}


class SlowForSome(Service):
    """Of six attempts four finish, in another order; two never do."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[str] = []

    def submit(self, requests) -> None:
        super().submit(requests)
        for quick in (5, 1, 3, 2):
            self.finish(requests[quick].id)

    def cancel(self, ids) -> None:
        self.cancelled += ids
        super().cancel(ids)


def test_over_admission_takes_the_first_to_finish_and_cancels_the_rest(make):
    service, ledger = SlowForSome(), Ledger()
    producer = make(service, ledger, over_admission=0.5)
    for step in range(3):
        asked = [request_id(i) for i in range(6 * step, 6 * step + 6)]
        assert ids(producer.take(step)) == [asked[i] for i in (1, 2, 3, 5)]
        assert service.submitted[-6:] == asked
        assert service.cancelled[-2:] == [asked[0], asked[4]]
        service.version = step + 1
        producer.release(step + 1)
    producer.close()
    assert len(ledger.dropped) == 6
    assert not set(ledger.dropped) & {i for batch in ledger.batches.values() for i in batch}
    assert all("over-admitted" in reason for reason in ledger.dropped.values())


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_over_admission_keeps_the_staleness_bound(make, max_staleness):
    service, ledger = Service(), Ledger()
    service.auto = Status.COMPLETED
    producer = make(service, ledger, over_admission=0.25, max_staleness=max_staleness)
    for step in range(8):
        taken = producer.take(step)
        assert len(taken) == 4
        assert all(step - t.oldest_version <= max_staleness for t in taken)
        service.version = step + 1
        producer.release(step + 1)
    trained = [i for batch in ledger.batches.values() for i in batch]
    assert len(trained) == len(set(trained)) == 32
    assert not set(trained) & set(ledger.dropped)


def test_each_finished_attempt_is_told_of_when_it_is_stored_not_when_its_batch_is_full(make):
    """What can't train is not; what a stopped run left is, before anything new."""
    service, ledger = Service(), Ledger()
    heard = queue.Queue()

    class Hearing:
        def begin(self, trajectories):
            for trajectory in trajectories:
                heard.put((trajectory.id, trajectory.id in ledger.rows))

    first = make(service, ledger, listener=Hearing())
    taking = threading.Thread(target=lambda: first.take(0), daemon=True)
    taking.start()
    service.finish(request_id(2))
    assert heard.get(timeout=10) == (request_id(2), True)
    assert taking.is_alive(), "three of the batch still run"
    service.finish(request_id(0), Status.FAILED)
    for i in (1, 3, 4):
        service.finish(request_id(i))
    taking.join(timeout=10)
    assert not taking.is_alive()
    assert {heard.get(timeout=10)[0] for _ in range(3)} == {request_id(i) for i in (1, 3, 4)}
    assert heard.empty()
    first.close()

    ledger.admit([request_id(9)])
    service.end(request_id(9), Status.COMPLETED)
    ledger.put([service.finished.get()])
    make(Service(), ledger, listener=Hearing())
    assert request_id(9) in [heard.get(timeout=10)[0] for _ in range(heard.qsize())]


def test_who_hears_of_finished_attempts_hears_which_will_not_train(make):
    service, ledger = Service(), Ledger()
    service.auto = Status.COMPLETED
    told: set[str] = set()

    class Hearing:
        def begin(self, trajectories):
            told.update(t.id for t in trajectories)

        def forget(self, ids):
            told.difference_update(ids)

    producer = make(service, ledger, over_admission=0.5, listener=Hearing())
    trained: set[str] = set()
    for step in range(3):
        trained.update(ids(producer.take(step)))
        assert told == trained
        service.version = step + 1
        producer.release(step + 1)
    assert ledger.dropped, "some were admitted beyond the batch"
