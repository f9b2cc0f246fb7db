"""Random sessions: every sampled token trains exactly once, nothing else does, as its sampler saw it.

The reference is brute force: a dictionary from whole token paths to the first call that sampled them.
"""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlframe.invariants import check_trajectory
from rlframe.types import LinkKind, Status, Trajectory, Turn
from rollout.capture.build import build, traces_of
from rollout.capture.call import CallKind, CallStatus, Thread
from rollout.capture.call_log import CallLog, read_calls
from rollout.capture.capture import DEFAULT_UNTRAINED, Capture, replay


class Session:
    """An agent program gone wild, over a few token ids so that paths meet by chance too."""

    def __init__(self, seed: int, sink=None) -> None:
        self.r = random.Random(seed)
        self.capture = Capture(sink=sink)
        self.version = 0
        self.sampled: dict[tuple[int, ...], tuple[float, int]] = {}

    def tokens(self, low: int, high: int) -> list[int]:
        return [self.r.randrange(12) for _ in range(self.r.randrange(low, high))]

    def call(self, prompt, thread, *, base=None, kind=CallKind.TURN, status=CallStatus.OK):
        self.version += self.r.random() < 0.1
        output = self.tokens(1, 9)
        number = len(self.capture.calls)
        turn = Turn(
            prompt_ids=np.array(prompt, np.int32),
            output_ids=tuple(output),
            logprobs=tuple(-(number * 100 + i + 1) / 1000 for i in range(len(output))),
            versions=(self.version,) * len(output),
            finish_reason="stop",
        )
        if self.r.random() < 0.3:
            base = None  # the same, rendered whole
        call = self.capture.record(turn, base=base, thread=thread, kind=kind, status=status)
        if self.capture.trains(call):
            for i in range(len(output)):
                path = (*prompt, *output[: i + 1])
                self.sampled.setdefault(path, (turn.logprobs[i], self.version))
        return call.id, [*prompt, *output], output

    def agent(self, context: list[int], depth: int, thread: str) -> None:
        base = None
        head = context[:2]
        for _ in range(self.r.randrange(1, 8)):
            event = self.r.random()
            if event < 0.06:
                self.call(context, thread, base=base)  # the reply was lost, it asks again
            if 0.06 <= event < 0.10:
                self.call(context, thread, base=base, status=CallStatus.ABORTED)
            if 0.10 <= event < 0.14:
                self.call(self.tokens(2, 5), thread, kind=CallKind.SMALL_MODEL)
            number, full, output = self.call(context, thread, base=base)
            base = number
            if event > 0.94:  # the client drops the turn
                context, base = context + self.tokens(1, 4), None
                continue
            if 0.80 < event <= 0.86 and len(output) > 2:  # a client that tokenizes again
                full, base = [*context, *output[:-1], 13], None
            if 0.86 < event <= 0.90 and depth < 2:
                for k in range(self.r.randrange(1, 3)):
                    name = f"{thread}.{number}.{k}"
                    self.capture.threads[name] = Thread(name, parent=thread, spawned_by=number)
                    forked = self.r.random() < 0.3
                    self.agent(full if forked else self.tokens(2, 6), depth + 1, name)
            if 0.72 < event <= 0.80:  # compaction, with a preserved tail
                _, _, summary = self.call([*full, 14], thread, base=base, kind=CallKind.COMPACTION)
                full, base = [*head, 15, *summary, *output], None
            context = full + self.tokens(1, 5)


def check(session: Session) -> None:
    built = build(session.capture)
    got: dict[tuple[int, ...], tuple[float, int]] = {}
    for trace in built.traces:
        ids = trace.token_ids.tolist()
        for i in np.flatnonzero(trace.loss_mask).tolist():
            path = tuple(ids[: i + 1])
            assert path not in got, "trained twice"
            got[path] = (float(trace.rollout_logprobs[i]), int(trace.versions[i]))
    assert got.keys() == session.sampled.keys()
    for path, (logprob, version) in session.sampled.items():
        assert got[path] == (pytest.approx(logprob, rel=1e-6), version)
    check_trajectory(Trajectory("t", "t", "d", Status.COMPLETED, built.traces, links=built.links))
    for call in session.capture.calls:
        if session.capture.trains(call):
            where = built.last_action[call.id]
            ids = built.traces[where.trace].token_ids
            assert ids[: where.position + 1].tolist() == path_of(session.capture, call.id)
    lazily = list(traces_of(session.capture))
    assert [t.token_ids.tolist() for t in lazily] == [t.token_ids.tolist() for t in built.traces]
    assert [t.loss_mask.tolist() for t in lazily] == [t.loss_mask.tolist() for t in built.traces]


def path_of(capture: Capture, call_id: int) -> list[int]:
    """From the log's own fields, not through the trie."""
    call = capture.calls[call_id]
    before = path_of(capture, call.base)[: call.kept] if call.base is not None else []
    return before + call.new_prompt_ids.tolist() + call.output_ids.tolist()


@given(seed=st.integers(0, 2**32))
def test_every_sampled_token_trains_exactly_once(seed):
    session = Session(seed)
    session.agent(session.tokens(3, 6), 0, "main")
    check(session)


def test_many_sessions():
    """The property again over fixed seeds, so that rare events are there for certain."""
    kinds, continued, spawned, traces = set(), 0, 0, 0
    for seed in range(400):
        session = Session(seed)
        session.agent(session.tokens(3, 6), 0, "main")
        check(session)
        kinds |= {(c.kind, c.status) for c in session.capture.calls}
        built = build(session.capture)
        continued += sum(link.kind is LinkKind.CONTINUES for link in built.links)
        spawned += sum(link.kind is LinkKind.SPAWNED_BY for link in built.links)
        traces += len(built.traces)
    assert len(kinds) == 4
    assert min(continued, spawned, traces) > 100


@given(seed=st.integers(0, 2**32), lost=st.integers(0, 40))
def test_the_log_gives_the_same_traces(tmp_path_factory, seed, lost):
    file = tmp_path_factory.mktemp("log") / "attempt.calls"
    log = CallLog(file)
    session = Session(seed, sink=log)
    session.agent(session.tokens(3, 6), 0, "main")
    log.close()
    again = replay(read_calls(file), untrained=DEFAULT_UNTRAINED)
    again.threads = session.capture.threads
    expected, found = build(session.capture), build(again)
    assert found.links == expected.links
    assert found.last_action == expected.last_action
    for a, b in zip(found.traces, expected.traces, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert a.loss_mask.tolist() == b.loss_mask.tolist()
        assert a.rollout_logprobs.tolist() == b.rollout_logprobs.tolist()
        assert a.versions.tolist() == b.versions.tolist()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - lost])  # a crash in the middle of the last frames
    calls = read_calls(file) if len(whole) - lost >= 16 else []
    assert [c.id for c in calls] == list(range(len(calls)))
    assert len(calls) <= len(session.capture.calls)


def test_a_damaged_log_is_no_log(tmp_path):
    file = tmp_path / "attempt.calls"
    log = CallLog(file)
    session = Session(3, sink=log)
    session.agent([1, 2, 3], 0, "main")
    log.close()
    data = bytearray(file.read_bytes())
    data[30] ^= 255
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="damaged at call 0"):
        read_calls(file)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a call log"):
        read_calls(file)
