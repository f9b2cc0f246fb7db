"""One attempt's access to the policy for a client that sends whole conversations: the gateway's, or ours.

Every request becomes a call in the capture: the prompt is built on stored ids where the conversation
goes on from one that was served (`rollout.history`), the answer is logged before the client sees it.
Requests of one attempt may run at the same time, be repeated, and come in any order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlframe.errors import InfraFault
from rlframe.types import Int32Array, Message, Status, Turn
from rollout.agent_heads import AgentHeads
from rollout.capture.call import MAIN_THREAD, Call, CallKind, CallStatus, Thread
from rollout.capture.capture import Capture
from rollout.chat import AttemptOver, ChatRequest, Parser, PlainText, Reply, with_call_ids
from rollout.guarded import Guarded, ServedCalls
from rollout.history import Ancestor, History, Looked
from rollout.policy_client import Generate
from rollout.renderer import CannotBridge, Renderer

SIDE_THREAD = "side"
FAREWELL = "The budget of this attempt is used up; the work ends here."


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all sessions of a worker share."""

    generate: Generate
    renderer: Renderer
    sampling: Mapping[str, Any]
    """By SGLang's names. A client's own parameters are never used, but for a lower token limit."""
    max_context_tokens: int
    max_calls: int
    max_output_tokens: int
    """Of all calls of an attempt together."""
    parser: Parser = field(default_factory=PlainText)
    model: str = "policy"


@dataclass(slots=True)
class _InFlight:
    task: asyncio.Task[Reply]
    waiters: int = 0


@dataclass(slots=True)
class Counts:
    """What a session did; metrics."""

    calls: int = 0
    output_tokens: int = 0
    full_renders: int = 0
    """Conversations with an assistant's turn in them that had to be rendered whole."""
    replayed: int = 0
    coalesced: int = 0
    aborted: int = 0
    synthetic: int = 0
    malformed_calls: int = 0
    """Places in answers that looked like a tool call and could not be read as one."""
    infra_faults: int = 0
    """Calls that the engine side lost; the client may have asked again."""


class Session:
    """See the module's docstring. `end_reason` says what budget has run out, if one has."""

    def __init__(
        self,
        settings: SessionSettings,
        capture: Capture,
        *,
        routing_key: str,
        guarded: Guarded | None = None,
    ) -> None:
        """`guarded`: a guard sees every tool call before the client does."""
        self._settings, self.capture = settings, capture
        self._guarded, self._served_calls = guarded, ServedCalls()
        self._routing_key = routing_key
        self._history = History()
        self._heads = AgentHeads()
        self._in_flight: dict[str, _InFlight] = {}
        self._replies: dict[str, Reply] = {}
        self._unjoined: dict[str, dict[str, float]] = {}
        self.end_reason: Status | None = None
        self._said_farewell = False
        self._closed = False
        self.refused = asyncio.Event()
        """A client goes on asking after the farewell: it may do so for as long as it is let."""
        self.counts = Counts()

    @property
    def model(self) -> str:
        return self._settings.model

    async def chat(self, request: ChatRequest) -> Reply:
        """One assistant's turn.

        The first request over a budget gets a synthetic farewell, later ones AttemptOver; TaskFault for
        messages that the template refuses, InfraFault where the engine failed.
        """
        if self._closed:
            raise AttemptOver("the attempt has ended")
        request = self._as_sampled(request)
        if request.retry and request.digest and request.digest in self._replies:
            self.counts.replayed += 1
            return self._replies[request.digest]
        running = self._in_flight.get(request.digest) if request.digest else None
        if running is None:
            running = self._start(request)
        else:
            self.counts.coalesced += 1
        running.waiters += 1
        try:
            return await asyncio.shield(running.task)
        except asyncio.CancelledError:
            if running.task.cancelled() and not self._hung_up():
                raise AttemptOver("the attempt has ended") from None
            raise
        finally:
            running.waiters -= 1

    def count_tokens(self, request: ChatRequest) -> int:
        """Of the prompt that `chat` would build."""
        request = self._as_sampled(request)
        looked = self._history.look(request.messages, request.tools)
        return len(self._prompt(request, looked)[0])

    async def close(self) -> None:
        """No further call is served; what is under way ends without an answer."""
        self._closed = True
        tasks = [running.task for running in self._in_flight.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end(self, reason: Status) -> None:
        """As if that budget had run out."""
        self.end_reason = self.end_reason or reason

    @staticmethod
    def _hung_up() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def _start(self, request: ChatRequest) -> _InFlight:
        key = request.digest or f"#{time.monotonic_ns()}"
        running = _InFlight(task=None)  # type: ignore[arg-type]  # set in the next line
        running.task = asyncio.create_task(self._serve(request, running))
        self._in_flight[key] = running

        def done(task: asyncio.Task[Reply]) -> None:
            self._in_flight.pop(key, None)
            # Looked at here: perhaps nobody waits for it any more.
            if not task.cancelled() and isinstance(task.exception(), InfraFault):
                self.counts.infra_faults += 1

        running.task.add_done_callback(done)
        return running

    async def _serve(self, request: ChatRequest, running: _InFlight) -> Reply:
        if over := self._over():
            return self._farewell(over)
        looked = self._history.look(request.messages, request.tools)
        prompt, ancestor = self._prompt(request, looked)
        room = self._settings.max_context_tokens - len(prompt)
        if room < 1:
            return self._farewell(Status.TRUNCATED_LENGTH)
        sampling = dict(self._settings.sampling)
        limits = [int(sampling["max_new_tokens"]), room]
        limits.append(self._settings.max_output_tokens - self.counts.output_tokens)
        if request.max_new_tokens:
            limits.append(request.max_new_tokens)
        sampling["max_new_tokens"] = max(min(limits), 1)
        self.counts.calls += 1
        if ancestor is None and any(m["role"] == "assistant" for m in request.messages):
            self.counts.full_renders += 1
        turn = await self._settings.generate(
            prompt, sampling=sampling, routing_key=self._routing_key
        )
        if not turn.output_ids:
            raise InfraFault("the engine answered without a token")
        self.counts.output_tokens += len(turn.output_ids)
        served = running.waiters > 0
        call = self._record(request, turn, ancestor, served=served)
        reply = self._reply(request, call, turn)
        sampled = reply.message
        if served and self._guarded is not None:
            stopped = await self._guarded.stopped(sampled, call.id)
            if self._guarded.ended:
                return self._farewell(Status.COMPLETED)
            reply = replace(reply, message=self._served_calls.serve(sampled, stopped))
        self._heads.said(reply.message["content"], thread=call.thread, kind=call.kind)
        if served:
            self._history.add(looked, sampled, call.id)
            self._replies[request.digest] = reply
        else:
            self.counts.aborted += 1
        return reply

    def _as_sampled(self, request: ChatRequest) -> ChatRequest:
        """With the policy's own calls where a guard gave the client others."""
        return replace(request, messages=self._served_calls.restored(request.messages))

    def _over(self) -> Status | None:
        if self.end_reason is None:
            if self.counts.calls >= self._settings.max_calls:
                self.end_reason = Status.TRUNCATED_TURNS
            elif self.counts.output_tokens >= self._settings.max_output_tokens:
                self.end_reason = Status.TRUNCATED_LENGTH
        return self.end_reason

    def _farewell(self, reason: Status) -> Reply:
        """A last message without a tool call lets an agent program end in order."""
        self.end_reason = self.end_reason or reason
        if self._said_farewell:
            self.refused.set()
            raise AttemptOver(f"the attempt is over: {self.end_reason.value}")
        self._said_farewell = True
        self.counts.synthetic += 1
        message: Message = {"role": "assistant", "content": FAREWELL}
        return Reply(message, "stop", 0, 0, call_id=-1, synthetic=True)

    def _prompt(self, request: ChatRequest, looked: Looked) -> tuple[Int32Array, Ancestor | None]:
        """The prompt's ids, and the call that they are built on."""
        renderer = self._settings.renderer
        ancestor = looked.ancestor
        if ancestor is not None and ancestor.index + 1 < len(request.messages):
            ids = self.capture.path_ids(ancestor.call)
            known = ancestor.index + 1
            with suppress(CannotBridge):
                new = renderer.bridge(
                    request.messages[known:],
                    last_id=int(ids[-1]),
                    history=request.messages[:known],
                    tools=request.tools,
                )
                return np.concatenate([ids, np.array(new, np.int32)]), ancestor
        return np.array(renderer.prompt(request.messages, request.tools), np.int32), None

    def _record(
        self, request: ChatRequest, turn: Turn, ancestor: Ancestor | None, *, served: bool
    ) -> Call:
        kind = request.identity.kind or CallKind.TURN
        thread = self._thread(request, ancestor, kind)
        call = self.capture.record(
            turn,
            base=ancestor.call if ancestor else None,
            thread=thread,
            kind=kind,
            status=CallStatus.OK if served else CallStatus.ABORTED,
            digest=request.digest,
            extras=dict(turn.extras),
        )
        self._join(call)
        return call

    def _thread(self, request: ChatRequest, ancestor: Ancestor | None, kind: CallKind) -> str:
        """By what the client says; else the thread of the call it goes on from; else by its head."""
        identity = request.identity
        if kind in (CallKind.SIDE, CallKind.SMALL_MODEL):
            return SIDE_THREAD
        if identity.known:
            name = identity.thread or MAIN_THREAD
        elif ancestor is not None:
            name = self.capture.calls[ancestor.call].thread
        elif kind is CallKind.COMPACTION:
            name = MAIN_THREAD
        else:
            name = self._heads.thread(request.messages, request.tools)
        if name != MAIN_THREAD and name not in self.capture.threads:
            parent = identity.parent_thread or MAIN_THREAD
            self.capture.threads[name] = Thread(name, parent=parent if parent != name else "")
        return name

    def _join(self, call: Call) -> None:
        """A thread's result is taken to be in its parent's first call that began after its last one."""
        threads = self.capture.threads
        waiting = self._unjoined.get(call.thread, {})
        for name in [name for name, ended_s in waiting.items() if call.started_s >= ended_s]:
            threads[name].joined_by = call.id
            del waiting[name]
        parent = threads[call.thread].parent
        if parent:
            threads[call.thread].joined_by = None
            self._unjoined.setdefault(parent, {})[call.thread] = call.ended_s

    def _reply(self, request: ChatRequest, call: Call, turn: Turn) -> Reply:
        text = self._settings.renderer.text(turn.output_ids)
        parsed = self._settings.parser.read(text, request.tools)
        self.counts.malformed_calls += len(parsed.malformed)
        message = with_call_ids(parsed.message, call.id)
        reason = "length" if turn.finish_reason == "length" else "stop"
        return Reply(
            message,
            "tool_calls" if message.get("tool_calls") and reason == "stop" else reason,
            prompt_tokens=len(turn.prompt_ids),
            output_tokens=len(turn.output_ids),
            call_id=call.id,
            cached_tokens=call.kept,
        )
