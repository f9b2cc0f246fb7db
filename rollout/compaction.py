"""When a conversation's context is compacted, and what the new context begins with.

The policy itself writes the summary, in the old context; then the context restarts with the opening
messages, the summary and the last turns as they were. The summary's tokens train where they were sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlframe.types import Message

INSTRUCTION = (
    "The context is nearly full. Write a summary from which the work can go on without it: the task, "
    "what was done and found out, the state of files and tests, and what comes next. Answer with the "
    "summary alone."
)
OPENING = "The context so far was summarised:\n\n"
TOOL = "compact_context"
_TOOL: Mapping[str, Any] = {
    "name": TOOL,
    "description": (
        "Start a new context: you are asked for a summary next, and go on with it and the last turn. "
        "Call it alone, when what came before is no longer needed word for word."
    ),
    "parameters": {"type": "object", "properties": {}},
}
DONE = "The context was compacted. Go on."


@dataclass(frozen=True, slots=True)
class CompactionPolicy:
    """Off by default: no trigger is set."""

    at_share: float = 0.0
    """Compact when the next prompt takes more than this share of the context window; 0: never."""
    every_turns: int = 0
    """Compact after so many turns in one context; 0: never."""
    by_tool: bool = False
    """The policy may compact when it wants to, by a tool call."""
    keep_turns: int = 1
    """How many of the last turns stay as they were, token for token, after the summary."""
    max_summary_tokens: int = 512
    instruction: str = INSTRUCTION

    @property
    def on(self) -> bool:
        return self.at_share > 0 or self.every_turns > 0 or self.by_tool

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """What an agent gets besides its environment's tools."""
        return (_TOOL,) if self.by_tool else ()

    def asked(self, message: Message) -> bool:
        """Whether the turn calls the tool."""
        calls = message.get("tool_calls") or ()
        return self.by_tool and any(call["name"] == TOOL for call in calls)

    def due(self, *, prompt_tokens: int, max_context_tokens: int, turns: int) -> bool:
        """`turns` counts those of the present context; one at least is needed for progress."""
        if turns < 1:
            return False
        full = self.at_share > 0 and prompt_tokens > self.at_share * max_context_tokens
        return full or 0 < self.every_turns <= turns

    def instruct(self) -> Message:
        return {"role": "user", "content": self.instruction}


def opening_with(opening: list[Message], placeholder: str) -> list[Message]:
    """The messages a new context begins with; the summary's tokens go where `placeholder` stands."""
    text = OPENING + placeholder
    last = opening[-1] if opening else None
    if last is not None and last["role"] == "user":
        # Templates differ in what they make of two user messages in a row.
        merged = {**last, "content": f"{last['content']}\n\n{text}"}
        return [*opening[:-1], merged]
    return [*opening, {"role": "user", "content": text}]
