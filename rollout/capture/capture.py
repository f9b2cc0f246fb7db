"""All calls of one attempt: recorded as they end, made into traces when the attempt has ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from rlframe.types import Int32Array, Turn
from rollout.capture.call import MAIN_THREAD, Call, CallKind, CallStatus, Thread
from rollout.capture.trie import Node, Place, TokenTrie

DEFAULT_UNTRAINED = frozenset({CallKind.SIDE, CallKind.SMALL_MODEL})


class CallSink(Protocol):
    """Where calls are kept durably (`call_log.CallLog`)."""

    def append(self, call: Call) -> None: ...

    def leave_out(self, call_id: int) -> None: ...


class Capture:
    """The calls of an attempt and their token trie.

    capture = Capture()
    first = capture.record(turn)
    second = capture.record(turn, base=first, thread="agent-1")
    built = build(capture)                       # traces, links: rollout.capture.build
    """

    def __init__(
        self,
        *,
        untrained: Collection[CallKind] = DEFAULT_UNTRAINED,
        sink: CallSink | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.trie = TokenTrie()
        self.threads: dict[str, Thread] = {MAIN_THREAD: Thread()}
        self._places: list[Place] = []
        self._untrained, self._sink = frozenset(untrained), sink
        self.left_out: set[int] = set()
        """Ids of calls that were sampled and handed out, and do not train: a guard has stopped what they
        called. Their tokens are context of what follows."""

    def record(
        self,
        turn: Turn,
        *,
        base: int | None = None,
        thread: str = MAIN_THREAD,
        kind: CallKind = CallKind.TURN,
        status: CallStatus = CallStatus.OK,
        digest: str = "",
        extras: dict[str, Any] | None = None,
    ) -> Call:
        """Logs a call, durably where there is a sink, and before anybody sees its answer.

        `base` is the id of an earlier call whose whole path the prompt begins with. ValueError for a
        turn without a prompt or without a sampled token, and for logprobs or versions that don't fit.
        """
        _check(turn)
        kept = self._kept(turn, base)
        new_prompt = np.array(turn.prompt_ids[kept:], np.int32)
        output = np.array(turn.output_ids, np.int32)
        call_id = len(self.calls)
        place, known = self.trie.insert(
            np.concatenate([new_prompt, output]),
            sampled_from=len(turn.prompt_ids),
            call=call_id,
            trains=self._trains(kind, status),
            base=self._places[base] if base is not None else None,
        )
        bridged = base is not None
        if base is None and known:  # rendered whole, all the same nothing is kept twice
            shared = min(known, len(new_prompt))
            base, kept, new_prompt = self._holder(place, shared), shared, new_prompt[shared:].copy()
        call = Call(
            id=call_id,
            base=base,
            kept=kept,
            new_prompt_ids=new_prompt,
            output_ids=output,
            logprobs=np.array(turn.logprobs, np.float32),
            versions=np.array(turn.versions, np.int32),
            finish_reason=turn.finish_reason,
            thread=thread,
            kind=kind,
            status=status,
            digest=digest,
            bridged=bridged,
            started_s=turn.started_s,
            ended_s=turn.ended_s,
            extras=extras or {},
        )
        self.calls.append(call)
        self._places.append(place)
        self.threads.setdefault(thread, Thread(thread))
        if self._sink is not None:
            self._sink.append(call)
        return call

    def leave_out(self, call_id: int) -> None:
        """The call, which was recorded before, does not train (see `left_out`)."""
        self.left_out.add(call_id)
        if self._sink is not None:
            self._sink.leave_out(call_id)

    def _kept(self, turn: Turn, base: int | None) -> int:
        if base is None:
            return 0
        earlier = self.calls[base]
        kept = earlier.tokens
        # The whole prefix would cost as much as it saves; a wrong base hardly has this token there.
        if len(turn.prompt_ids) < kept or turn.prompt_ids[kept - 1] != earlier.output_ids[-1]:
            raise ValueError(f"the prompt does not begin with all of call {base}")
        return kept

    def place(self, call_id: int) -> Place:
        """Where the call's path ends."""
        return self.trie.at(self._places[call_id])

    def path_ids(self, call_id: int) -> Int32Array:
        """[tokens] the call's prompt and output."""
        return self.trie.ids(self.place(call_id))

    def trains(self, call: Call) -> bool:
        return self._trains(call.kind, call.status)

    def _trains(self, kind: CallKind, status: CallStatus) -> bool:
        return status is CallStatus.OK and kind not in self._untrained

    def _holder(self, place: Place, depth: int) -> int:
        """An earlier call whose path goes through this one's at `depth`."""
        node: Node = self.trie.at(Place(place.node, depth)).node
        waiting = [node]
        newest = len(self.calls)
        while waiting:
            node = waiting.pop()
            older = [call for call in node.calls if call < newest]
            if older:
                return older[0]
            waiting.extend(node.children.values())
        raise AssertionError("a known path belongs to a call")


def replay(calls: Sequence[Call], *, untrained: Collection[CallKind]) -> Capture:
    """The capture of an attempt, made anew from its log."""
    capture = Capture(untrained=untrained)
    for call in calls:
        prompt = call.new_prompt_ids
        if call.base is not None:
            prompt = np.concatenate([capture.path_ids(call.base)[: call.kept], prompt])
        turn = Turn(
            prompt_ids=prompt,
            output_ids=tuple(call.output_ids.tolist()),
            logprobs=tuple(call.logprobs.tolist()),
            versions=tuple(call.versions.tolist()),
            finish_reason=call.finish_reason,
            started_s=call.started_s,
            ended_s=call.ended_s,
        )
        capture.record(
            turn,
            base=call.base if call.bridged else None,
            thread=call.thread,
            kind=call.kind,
            status=call.status,
            digest=call.digest,
            extras=call.extras,
        )
    return capture


def _check(turn: Turn) -> None:
    if not len(turn.prompt_ids) or not turn.output_ids:
        raise ValueError("a call has a prompt and at least one sampled token")
    found = len(turn.logprobs), len(turn.versions)
    if found != (len(turn.output_ids),) * 2:
        raise ValueError(
            f"{len(turn.output_ids)} sampled tokens, but {found} logprobs and versions"
        )
