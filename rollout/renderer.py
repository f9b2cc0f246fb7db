"""Messages to token ids, by the tokenizer's own chat template, and never the same text twice.

The first prompt of a conversation is rendered whole. After that the ids so far are kept as they were
sampled, and only what is new is rendered and appended ("bridging"): the template is rendered
around a stand-in for the assistant's turn, and what follows it is the bridge. Sampled text is never
tokenized again.

What follows an answer begins with a special token: the end of turn (Qwen, Llama), or the next message's
own opening (GLM, whose models sample that opening in order to stop). Where the turn's last token is that
token already, it isn't written twice; where it is another one, it stays and the right one follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from rlframe.errors import TaskFault, UserError
from rlframe.types import BoolArray, Demonstration, Int32Array, Message
from rollout.chat_template import ChatTokenizer
from rollout.template_input import as_reminders, without_midway_systems
from rollout.template_probe import ASK, STAND_IN, after_answer, bare, probe, why_not_exact

CACHED_BRIDGES = 1024
CACHED_BYTES = 2048
"""Longer messages are hardly ever the same twice."""
Tools = Sequence[Mapping[str, Any]]


class CannotBridge(TaskFault):
    """What is new can't be appended to the ids so far: the caller may render everything in full."""


class Renderer:
    """One tokenizer and its template.

    renderer.family           what is known of the template, `generic` if nothing
    renderer.stop_token_ids   at which a turn ends; the engine must be told
    renderer.end_of_turn      the one that ends a turn which nothing but a user's message follows
    renderer.opens_reasoning  the generation prompt has begun the reasoning; for the reasoning parser
    renderer.shows_tools      tools, calls and results are written into the prompt: the model sees them
    renderer.cannot_bridge    why this template can never be bridged; empty if it can

    Raises UserError where turns could not be told apart, and, with `must_bridge`, where bridging would
    not be exact. `template_args` are the template's own variables (`enable_thinking`).
    """

    def __init__(
        self,
        directory: str,
        *,
        must_bridge: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = ChatTokenizer(directory, template_args)
        self._special = frozenset(self._tokenizer.special_tokens().values())
        self._cached = lru_cache(maxsize=CACHED_BRIDGES)(self._bridge_of)
        try:
            self._facts = probe(self._tokenizer)
            self.cannot_bridge = why_not_exact(self._tokenizer, self._facts.family)
        except (TaskFault, ValueError) as error:
            raise UserError(f"model.tokenizer: '{directory}': {error}") from error
        if self.cannot_bridge and must_bridge:
            raise UserError(f"model.tokenizer: '{directory}': {self.cannot_bridge}")
        self.family = self._facts.family
        self.end_of_turn = self._facts.end_of_turn
        self.shows_tools = self._facts.shows_tools
        self.opens_reasoning = self._facts.opening.rstrip().endswith("<think>")
        self.stop_token_ids = self._find_stops()

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self._tokenizer.vocab_size

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The ids of a conversation's start, ready for the assistant's turn. TaskFault for messages
        that the template refuses."""
        return self._tokenizer.encode(self._whole(messages, tools))

    def prompt_with(
        self, messages: Sequence[Message], ids: Sequence[int], tools: Tools = ()
    ) -> list[int]:
        """As `prompt`, with the sampled `ids` in the place of `STAND_IN`, token for token.

        ValueError where it stands nowhere, or twice.
        """
        text = self._whole(messages, tools)
        if text.count(STAND_IN) != 1:
            raise ValueError(f"the stand-in is there {text.count(STAND_IN)} times")
        before, _, after = text.partition(STAND_IN)
        return [*self._tokenizer.encode(before), *ids, *self._tokenizer.encode(after)]

    def bridge(
        self,
        messages: Sequence[Message],
        *,
        last_id: int | None,
        history: Sequence[Message] = (),
        tools: Tools = (),
    ) -> list[int]:
        """The ids between an assistant's turn and the next: the new messages, ready for its answer.

        `last_id` is the turn's last token; None: whatever ends it is written anew. `history` (everything
        up to that turn) is what the check needs for a template that isn't known: CannotBridge where the
        whole rendering does not just go on, earlier reasoning aside. TaskFault for messages that the template refuses.
        """
        if self.cannot_bridge:
            raise CannotBridge(self.cannot_bridge)
        try:
            key = orjson.dumps([dict(m) for m in messages])
        except TypeError as error:
            raise TaskFault(f"a message is not JSON: {error}") from error
        text, ids = (self._cached if len(key) <= CACHED_BYTES else self._bridge_of)(key)
        if history and self.family.name == "generic":
            self._check_history(history, messages, tools, text)
        return list(ids[1:] if ids[0] == last_id else ids)

    def text(self, ids: Sequence[int]) -> str:
        """What a turn says, for people and for tools: all of it but the token that ends it. Never goes
        back to ids. Other special tokens stay, so that an answer with one in it is another answer."""
        return self._tokenizer.decode(self.without_end(ids))

    def without_end(self, ids: Sequence[int]) -> Sequence[int]:
        """A turn's ids, but for the token that ends it."""
        return ids[:-1] if ids and ids[-1] in self.stop_token_ids else ids

    def demonstration(self, shown: Demonstration) -> tuple[Int32Array, BoolArray]:
        """[T] ids of a whole conversation, and true at the tokens that train: the assistant's texts and
        the tokens that end them, where the demonstration does not say otherwise."""
        ids: list[int] = []
        mask: list[bool] = []
        fresh: list[Message] = []
        for index, message in enumerate(shown.messages):
            if message["role"] != "assistant":
                fresh.append(message)
                continue
            context = self.bridge(fresh, last_id=None) if ids else self.prompt(fresh, shown.tools)
            answer = self._tokenizer.encode(self.answer_text(message))
            # What follows an answer begins with the token that ends it.
            mask += [bool(mask) and mask[-1], *[False] * (len(context) - 1)]
            mask += [index not in shown.untrained] * len(answer)
            ids += context + answer
            fresh = []
        if mask:
            ids, mask = [*ids, self.end_of_turn], [*mask, mask[-1]]
        return np.array(ids, np.int32), np.array(mask, np.bool_)

    def answer_text(self, message: Message) -> str:
        """What a model that follows the template would have sampled, but for the token that ends it.
        UserError where the template writes such an answer otherwise than it asks for one."""
        if not (message.get("tool_calls") or message.get("reasoning_content")):
            return str(message["content"])
        opening = self._facts.opening
        whole = self._tokenizer.render([ASK, message], generation_prompt=False)
        if not whole.startswith(opening):
            raise UserError(
                f"the chat template has no place for {message!r} after {opening[-20:]!r}"
            )
        answer, ended, _ = whole[len(opening) :].rpartition(self._facts.end_text)
        return answer if ended else whole[len(opening) :]

    def _whole(
        self, messages: Sequence[Message], tools: Tools = (), *, generation_prompt: bool = True
    ) -> str:
        if not (self._facts.results_alone or self.shows_tools) and _has_results(messages):
            raise TaskFault("the chat template leaves out the results of tools")
        accepted = messages if self._facts.systems_midway else without_midway_systems(messages)
        return self._tokenizer.render(accepted, generation_prompt=generation_prompt, tools=tools)

    def _bridge_of(self, new_messages: bytes) -> tuple[str, tuple[int, ...]]:
        messages = orjson.loads(new_messages)
        if not self._facts.results_alone and _has_results(messages):
            raise CannotBridge("the chat template does not show a tool's result after an answer")
        accepted = messages if self._facts.systems_midway else as_reminders(messages)
        text = after_answer(self._tokenizer, accepted)
        ids = tuple(self._tokenizer.encode(text))
        if not ids or ids[0] not in self._special:
            raise CannotBridge(f"the chat template ends an answer with {text[:20]!r} here")
        return text, ids

    def _check_history(
        self, history: Sequence[Message], messages: Sequence[Message], tools: Tools, bridge: str
    ) -> None:
        before = self._whole(history, tools, generation_prompt=False)
        whole = self._whole([*history, *messages], tools)
        if self.family.reasons:
            before, whole, bridge = bare(before), bare(whole), bare(bridge)
        if not (whole.startswith(before) and whole.endswith(bridge)):
            raise CannotBridge("the chat template renders earlier messages otherwise now")

    def _find_stops(self) -> tuple[int, ...]:
        """The end of turn first. The engine ends a turn at the model's own end of text in any case."""
        special = self._tokenizer.special_tokens()
        known = [special[text] for text in self.family.stops if text in special]
        ids = [self.end_of_turn, *known, *self._tokenizer.end_of_text_ids()]
        return tuple(dict.fromkeys(ids))


def _has_results(messages: Sequence[Message]) -> bool:
    return any(message.get("role") == "tool" for message in messages)
