"""All teachers of a run on their engines: `rlframe.teaching.TeacherService`.

    submit            puts traces into the queues of their teachers' groups; returns at once
    dispatch thread   consumes events (traces submitted, calls of actors done, a tick), and after each gives
                      every free engine its next work: more of its teacher, or a swap to another
    collect           waits for what the thread puts out

A trace is in exactly one place: a queue, a call under way, or the output. An engine that fails gives back all
that it had; it is started again, and what was with it goes alone the next time.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlframe.errors import InfraFault, RunError
from rlframe.teaching import ScoreRequest, TeacherScores
from rollout.teachers.engine import Scored, Started
from rollout.teachers.queues import Waiting
from rollout.teachers.scoring import Nonsense
from rollout.teachers.slot import Call, Group, Slot
from rollout.teachers.tally import Tally

TICK_S = 0.05
LOOK_EVERY_S = 1.0
SIGN_TIMEOUT_S = 1.0
CLOSE_S = 15.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done about failures, and how much is given out at a time."""

    vocab_size: int
    tokens_in_flight: int
    on_failure: str
    max_attempts: int
    max_restarts: int
    keep: Callable[[str, int], frozenset[str]]
    """(node, bytes of shared memory free there) -> the teachers that are kept there."""


class TeacherPool:
    """See the module's docstring."""

    def __init__(
        self,
        groups: Sequence[Group],
        policy: Policy,
        *,
        on_event: Callable[[str], None] = lambda text: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._groups, self._policy = list(groups), policy
        self._on_event, self._on_close = on_event, on_close
        self._group_of = {name: group for group in groups for name in group.teachers}
        self._slots = [(group, slot) for group in groups for slot in group.slots]
        self._kept: dict[str, frozenset[str]] = {}  # by node
        self._tally = Tally(len(self._slots))
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[TeacherScores | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._restarts_left, self._version = policy.max_restarts, 0
        self._closing = False
        self._looked_s = 0.0
        self._thread = threading.Thread(target=self._run, name="teachers", daemon=True)

    def begin_start(self) -> None:
        """All engines start at the same time; returns at once."""
        for group, slot in self._slots:
            slot.actor = slot.create()
            self._start(group, slot)

    def wait_started(self, progress: Callable[[str], None]) -> None:
        """Until every engine and every server outside answers."""
        pending = {ref: slot for _, slot in self._slots for ref in slot.calls}
        import ray

        free: dict[str, int] = {}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            slot = pending.pop(done[0])
            started: Started = _result(done[0])
            del slot.calls[done[0]]
            slot.node = started.info.node_id
            known = free.setdefault(slot.node, started.shared_memory_bytes)
            free[slot.node] = min(known, started.shared_memory_bytes)
            progress(f"teacher engine {slot.name} is up at {started.info.url}")
        self._kept = {node: self._policy.keep(node, left) for node, left in free.items()}
        for group, slot in self._slots:
            self._after_start(group, slot)
        self._thread.start()

    def submit(self, requests: Sequence[ScoreRequest]) -> None:
        """ValueError for ids outside of the vocabulary and teachers that nobody knows."""
        for request in requests:
            self._check(request)
        self._events.put(list(requests))

    def collect(self, timeout_s: float) -> list[TeacherScores]:
        """Whatever has been scored. RunError where the teachers can't go on."""
        scores: list[TeacherScores] = []
        try:
            found = self._out.get(timeout=timeout_s)
            while found is not None:
                scores.append(found)
                found = self._out.get_nowait()
        except queue.Empty:
            pass
        if self._error is not None and not scores:
            raise self._error
        return scores

    def metrics(self) -> dict[str, float]:
        """Since the last call; see `Tally.read`."""
        return self._tally.read()

    def processes(self) -> list[str]:
        """Names of the engines, for people."""
        return [slot.name for _, slot in self._slots]

    def close(self) -> None:
        """Ends every engine; never raises for one that is dead already."""
        import ray

        self._closing = True
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        stopping = [slot.actor.close.remote() for _, slot in self._slots if slot.actor is not None]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=CLOSE_S)
        for _, slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
                slot.actor = None
        self._on_close()

    def _check(self, request: ScoreRequest) -> None:
        if request.teacher not in self._group_of:
            raise ValueError(f"there is no teacher '{request.teacher}'")
        ids = np.asarray(request.token_ids)
        if not 1 <= request.begin < len(ids):
            raise ValueError(f"begin={request.begin} of a trace of {len(ids)} tokens")
        if ids.min() < 0 or ids.max() >= self._policy.vocab_size:
            raise ValueError(f"trace {request.id} has token ids outside of the vocabulary")
        if not 0 <= request.top_k <= self._policy.vocab_size:
            raise ValueError(f"top_k={request.top_k} of {self._policy.vocab_size} tokens")

    def _run(self) -> None:
        try:
            while not self._closing:
                for event in self._next_events():
                    self._handle(event)
                self._look()
                for group in self._groups:
                    self._dispatch(group)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the loop has to hear of it
            self._error = error
            self._out.put(None)

    def _next_events(self) -> list[Any]:
        """Waits for the first, but not for more."""
        events: list[Any] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=TICK_S))
            while True:
                events.append(self._events.get_nowait())
        return events

    def _handle(self, event: Any) -> None:
        if isinstance(event, list):
            now = time.monotonic()
            for request in event:
                self._group_of[request.teacher].queues.add([request], now)
            return
        group, slot, ref = event
        call = slot.calls.pop(ref, None)
        if call is None:
            return  # of an actor that was replaced meanwhile
        try:
            result = _result(ref)
        except Exception as error:  # noqa: BLE001 - of the actor, or of what it talks to
            self._failed(group, slot, call, error)
            return
        if slot.pulse is not None and call.kind not in ("sign", "generates"):
            slot.pulse.beat()
        getattr(self, f"_after_{call.kind}")(group, slot, call, result)

    def _ask(self, group: Group, slot: Slot, call: Call, *args: Any, **kwargs: Any) -> None:
        ref = getattr(slot.actor, call.kind).remote(*args, **kwargs)
        slot.calls[ref] = call
        ref.future().add_done_callback(lambda _: self._events.put((group, slot, ref)))

    def _dispatch(self, group: Group) -> None:
        for engine, slot in enumerate(group.slots):
            if slot.takes_more and group.queues.waits(str(slot.loaded)):
                self._feed(group, engine, slot)
            if slot.free:
                self._turn(group, engine, slot)
            if slot.to_stage and not slot.under_way("stage", "start", "swap"):
                self._stage(group, slot, slot.to_stage.pop(0))

    def _feed(self, group: Group, engine: int, slot: Slot) -> None:
        """More of the teacher that it has, unless another one's turn has come."""
        states = group.states()
        if group.queues.next_turn(engine, states, group.swap_cost, time.monotonic()) != slot.loaded:
            return
        while slot.takes_more and group.queues.waits(str(slot.loaded)):
            if slot.under_way("score") and group.queues.suspects(str(slot.loaded)):
                return
            self._score(group, slot)
        upcoming = group.queues.upcoming(engine, group.states(), group.swap_cost)
        known = {*slot.ready, slot.ahead}
        if upcoming and upcoming not in known and not slot.under_way("stage"):
            slot.ahead = upcoming
            self._stage(group, slot, upcoming)

    def _score(self, group: Group, slot: Slot) -> None:
        share = max(self._policy.tokens_in_flight // slot.calls_at_once, 1)
        taken = group.queues.take(str(slot.loaded), share)
        now = time.monotonic()
        self._tally.add(taken=len(taken), queue_total_s=sum(now - w.since_s for w in taken))
        if not slot.under_way("score"):
            slot.scored_until_s = now
            if slot.pulse is not None:
                slot.pulse.beat()
        call = Call("score", str(slot.loaded), tuple(taken))
        self._ask(group, slot, call, [w.request for w in taken], slot.version)

    def _turn(self, group: Group, engine: int, slot: Slot) -> None:
        """A swap, where the plan gives this engine another teacher."""
        now = time.monotonic()
        teacher = group.queues.next_turn(engine, group.states(), group.swap_cost, now)
        if teacher is None or teacher == slot.loaded:
            return
        if slot.fixed:
            slot.loaded = slot.fixed
            return
        self._version += 1
        slot.loaded, slot.version, slot.ahead = teacher, self._version, ""
        keep = teacher in self._kept.get(slot.node, ())
        self._ask(group, slot, Call("swap", teacher), teacher, self._version, keep=keep)

    def _stage(self, group: Group, slot: Slot, teacher: str) -> None:
        keep = teacher in self._kept.get(slot.node, ())
        self._ask(group, slot, Call("stage", teacher), teacher, keep=keep)

    def _start(self, group: Group, slot: Slot) -> None:
        slot.loaded = None
        slot.ready.clear()
        number = group.slots.index(slot) % len(group.teachers)
        first = group.teachers[number]
        ref = slot.actor.start.remote(first)
        slot.calls[ref] = Call("start", first)
        if self._thread.is_alive():
            ref.future().add_done_callback(lambda _: self._events.put((group, slot, ref)))

    def _after_start(self, group: Group, slot: Slot, *_: Any) -> None:
        kept = self._kept.get(slot.node, frozenset())
        mine = group.slots.index(slot)
        turned = group.teachers[mine:] + group.teachers[:mine]  # engines begin at different ones
        slot.to_stage = [] if slot.fixed else [name for name in turned if name in kept]
        if slot.fixed:
            slot.loaded = slot.fixed

    def _after_swap(self, group: Group, slot: Slot, call: Call, times: dict[str, float]) -> None:
        group.observe_swap(times["total_s"], restarted=bool(times["restarted"]))
        slot.turn_began_s = time.monotonic()
        self._tally.add(swaps=1, swap_total_s=time.monotonic() - call.began_s)
        if times["restarted"]:
            slot.ready.clear()

    def _after_stage(self, group: Group, slot: Slot, call: Call, seconds: float) -> None:
        # What is not kept has to be read again before each of its turns, to be in the page cache.
        if call.teacher in self._kept.get(slot.node, ()):
            slot.ready.add(call.teacher)

    def _after_score(self, group: Group, slot: Slot, call: Call, scored: Scored) -> None:
        self._count_busy(slot)
        group.queues.observe(call.tokens, scored.seconds / slot.calls_at_once)
        self._tally.add(traces=len(scored.scores), tokens=call.tokens)
        for scores in scored.scores:
            self._out.put(scores)

    def _after_sign(self, group: Group, slot: Slot, call: Call, sign: Any) -> None:
        if not slot.under_way("score"):
            return
        if sign is None:
            self._replace(group, slot, "had died")
        elif slot.pulse is not None:
            slot.pulse.feel(sign)

    def _after_generates(self, group: Group, slot: Slot, call: Call, generated: bool) -> None:
        if slot.pulse is None or not slot.under_way("score"):
            return
        if generated:
            slot.pulse.beat()
        elif slot.pulse.hung:
            self._replace(group, slot, f"stood still for {slot.pulse.still_s:.0f} s")

    def _look(self) -> None:
        """Feels the pulses of engines that have something to score."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now
        for group, slot in self._slots:
            if slot.pulse is None or not slot.under_way("score"):
                continue
            self._count_busy(slot)
            if not slot.under_way("sign"):
                self._ask(group, slot, Call("sign"), timeout_s=SIGN_TIMEOUT_S)
            if slot.pulse.doubtful and not slot.under_way("generates"):
                patience_s = slot.pulse.patience_s
                self._ask(group, slot, Call("generates"), timeout_s=patience_s)

    def _count_busy(self, slot: Slot) -> None:
        now = time.monotonic()
        self._tally.add(busy_s=now - slot.scored_until_s)
        slot.scored_until_s = now

    def _failed(self, group: Group, slot: Slot, call: Call, error: Exception) -> None:
        """Of a call. RunError where nothing can be done about it."""
        if call.kind == "stage" or isinstance(error, RunError):
            raise RunError(f"teacher {call.teacher or slot.name}: {error}") from error
        if isinstance(error, Nonsense):
            self._tally.add(nonsense=1)
        why = f"failed ({error})"
        if slot.fixed and isinstance(
            error, InfraFault
        ):  # nothing of ours that could be started again
            self._spend_restart(slot, why)
            for waiting in reversed(call.waiting):
                self._again(group, waiting, why)
            if call.kind == "start":
                self._start(group, slot)
            return
        slot.calls[object()] = call  # its traces are given back with the others
        self._replace(group, slot, why)

    def _replace(self, group: Group, slot: Slot, why: str) -> None:
        """A new actor; what the old one had is given back."""
        import ray

        self._spend_restart(slot, why)
        self._on_event(f"teacher engine {slot.name} {why}; it is started again")
        self._tally.add(restarts=1)
        given_back = [w for call in slot.under_way("score") for w in call.waiting]
        slot.calls.clear()
        ray.kill(slot.actor)
        slot.actor = slot.create()
        self._start(group, slot)
        for waiting in reversed(given_back):
            self._again(group, waiting, why)

    def _spend_restart(self, slot: Slot, why: str) -> None:
        if self._restarts_left <= 0:
            raise RunError(
                f"teacher engine {slot.name} {why}, and teachers.max_restarts is used up; see logs/ in the "
                "run directory"
            )
        self._restarts_left -= 1

    def _again(self, group: Group, waiting: Waiting, why: str) -> None:
        waiting.attempts += 1
        if waiting.attempts < self._policy.max_attempts:
            self._tally.add(requeued=1)
            group.queues.put_back(waiting)
            return
        request = waiting.request
        text = f"teacher {request.teacher} could not score trace {request.id}: its engine {why}"
        if self._policy.on_failure == "stop":
            raise RunError(f"{text}, {waiting.attempts} times (teachers.max_attempts)")
        self._tally.add(skipped=1)
        self._on_event(f"{text}; skipped")
        nothing = np.zeros(len(request.token_ids), np.float32)
        self._out.put(TeacherScores(request.id, request.teacher, nothing, error=why))


def _result(reference: Any) -> Any:
    """ray.get, with errors of ours as they were raised and not as Ray's wrapper."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
