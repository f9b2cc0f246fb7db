"""What a white-box loop sees of the policy: messages in, a turn with text, ids and logprobs out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlframe.errors import InfraFault
from rlframe.types import Message, Turn
from rollout.capture.call import MAIN_THREAD, Call, CallKind, Thread
from rollout.capture.capture import Capture
from rollout.chat import Parser, PlainText, with_call_ids
from rollout.compaction import CompactionPolicy, opening_with
from rollout.renderer import Renderer
from rollout.template_probe import STAND_IN

Generate = Callable[..., Coroutine[Any, Any, Turn]]
"""`EngineClient.generate`."""


class ContextFull(Exception):  # noqa: N818 - a limit, not an error
    """The conversation leaves no room for another turn."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One answer of the policy."""

    text: str
    message: Message
    """The parsed text: content, reasoning, tool calls."""
    turn: Turn
    call: int
    """Its id in the capture."""
    malformed: tuple[str, ...] = ()
    """Why places of the text that looked like a tool call are none."""


@dataclass(slots=True)
class _Context:
    """The ids of the present context, and where they came from."""

    ids: list[int] = field(default_factory=list)
    last_call: int | None = None
    """The call whose path `ids` is; None while nothing was sampled in this context."""
    turns: list[tuple[list[int], tuple[int, ...]]] = field(default_factory=list)
    """Of every turn in this context: what the prompt added, and what was sampled."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What all conversations of a worker share."""

    generate: Generate
    renderer: Renderer
    sampling: Mapping[str, Any]
    max_context_tokens: int
    compaction: CompactionPolicy = CompactionPolicy()
    parser: Parser = field(default_factory=PlainText)


class PolicyClient:
    """One conversation: the main one of an attempt, or a sub-agent's.

    turn = await policy.chat([{"role": "user", "content": "..."}])
    turn = await policy.chat([{"role": "user", "content": "Try again."}])    # only what is new
    """

    def __init__(
        self,
        settings: PolicySettings,
        capture: Capture,
        *,
        routing_key: str,
        thread: str = MAIN_THREAD,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._settings, self._capture = settings, capture
        self._renderer = settings.renderer
        self._sampling = {
            **settings.sampling,
            "stop_token_ids": list(settings.renderer.stop_token_ids),
        }
        self._routing_key, self.thread, self._tools = routing_key, thread, tuple(tools)
        self._opening: list[Message] = []
        self._context = _Context()
        self.compactions = 0
        self._compact_next = False
        self.last_text = ""
        """The last answer's."""

    @property
    def last_call(self) -> int | None:
        """Id of the call that the context ends with."""
        return self._context.last_call

    @property
    def compaction(self) -> CompactionPolicy:
        return self._settings.compaction

    def compact_next(self) -> None:
        """The context is compacted before the next turn, whatever the policy for that says."""
        self._compact_next = True

    async def chat(self, messages: Sequence[Message]) -> ChatTurn:
        """Raises ContextFull where no token could be sampled any more, TaskFault for messages that the
        template refuses, InfraFault where the engine failed."""
        if not self._opening:
            self._opening = list(messages)
        new = (
            self._bridge(messages)
            if self._context.ids
            else self._renderer.prompt(messages, self._tools)
        )
        if self._compact_next or self.compaction.due(
            prompt_tokens=len(self._context.ids) + len(new),
            max_context_tokens=self._settings.max_context_tokens,
            turns=len(self._context.turns),
        ):
            new = await self._compact(messages, pending=len(new))
        call, turn = await self._sample(new, CallKind.TURN)
        self._context.ids += [*new, *turn.output_ids]
        self._context.turns.append((new, turn.output_ids))
        self._context.last_call = call.id
        text = self.last_text = self._renderer.text(turn.output_ids)
        parsed = self._settings.parser.read(text, self._tools)
        message = with_call_ids(parsed.message, call.id)
        return ChatTurn(text, message, turn, call.id, parsed.malformed)

    def spawn(
        self,
        name: str,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        fork: bool = False,
        spawned_by: int | None = None,
    ) -> PolicyClient:
        """A sub-agent's conversation, in a thread of its own: empty, or with a `fork` of this context,
        which brings this conversation's tools."""
        child = PolicyClient(
            self._settings,
            self._capture,
            routing_key=self._routing_key,
            thread=name,
            tools=self._tools if fork else tools,
        )
        self._capture.threads[name] = Thread(name, parent=self.thread, spawned_by=spawned_by)
        if fork:
            child._opening = list(self._opening)
            child._context.ids = list(self._context.ids)
            child._context.last_call = self._context.last_call
        return child

    def join(self, children: Sequence[PolicyClient], turn: ChatTurn) -> None:
        """`turn` of this conversation is the first that saw the children's results."""
        for child in children:
            self._capture.threads[child.thread].joined_by = turn.call

    def _bridge(self, messages: Sequence[Message]) -> list[int]:
        return self._renderer.bridge(messages, last_id=self._context.ids[-1])

    async def _sample(
        self, new: list[int], kind: CallKind, max_tokens: int | None = None
    ) -> tuple[Call, Turn]:
        prompt = self._context.ids + new
        room = self._settings.max_context_tokens - len(prompt)
        if room < 1:
            raise ContextFull(
                f"{len(prompt)} of {self._settings.max_context_tokens} tokens are used"
            )
        limit = min(max_tokens or int(self._sampling["max_new_tokens"]), room)
        turn = await self._settings.generate(
            np.array(prompt, np.int32),
            sampling={**self._sampling, "max_new_tokens": limit},
            routing_key=self._routing_key,
        )
        if not turn.output_ids:
            raise InfraFault("the engine answered without a token")
        call = self._capture.record(
            turn,
            base=self._context.last_call,
            thread=self.thread,
            kind=kind,
            extras=dict(turn.extras),
        )
        return call, turn

    async def _compact(self, messages: Sequence[Message], *, pending: int) -> list[int]:
        """The policy sums up the context; the new one begins with that and the last turns.

        Returns what `messages` add to the new context; in the old one they took `pending` tokens.
        """
        policy = self.compaction
        instruct = self._bridge([policy.instruct()])
        _, turn = await self._sample(instruct, CallKind.COMPACTION, policy.max_summary_tokens)
        self.compactions += 1
        self._compact_next = False
        summary = self._renderer.without_end(turn.output_ids)
        opening = opening_with(self._opening, STAND_IN)
        head = self._renderer.prompt_with(opening, summary, self._tools)
        room = self._settings.max_context_tokens - len(head) - pending - 1
        kept = self._context.turns[max(len(self._context.turns) - policy.keep_turns, 0) :]
        while kept and len(_tail(kept)) > room:
            kept = kept[1:]
        self._context = _Context(ids=head + _tail(kept) if kept else [])
        if kept:
            return self._bridge(messages)
        return self._renderer.prompt_with([*opening, *messages], summary, self._tools)


def _tail(turns: Sequence[tuple[list[int], tuple[int, ...]]]) -> list[int]:
    """The turns' ids from the first one's answer on: it answers the new context's opening."""
    ids: list[int] = []
    for index, (new, sampled) in enumerate(turns):
        ids += [*(new if index else ()), *sampled]
    return ids
