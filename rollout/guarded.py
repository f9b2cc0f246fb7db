"""A guard at work in one attempt: which calls it stops, what trains of such turns, what is noted of it.

guarded = Guarded.begin(guard, task, capture)              # None: nothing to guard
stopped = await guarded.stopped(message, call_id)          # {tool call id: Blocked}
info["guard"] = guarded.report()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlframe.interfaces import Blocked, Guard, GuardWatch
from rlframe.types import Message, Task
from rollout.capture.build import Built
from rollout.capture.capture import Capture

MAX_FILE_BYTES = 262_144
MAX_FILES = 2_000
ENDED = "the guard ended the attempt at a hack"


@dataclass(slots=True)
class Guarded:
    """See the module's docstring."""

    guard: Guard
    watch: GuardWatch
    capture: Capture
    turns: list[int] = field(default_factory=list)
    """Ids of the model calls with a tool call that was stopped."""
    findings: list[str] = field(default_factory=list)
    ended: bool = False
    """A call was stopped, and that ends the attempt (`action=end`): whoever drives it does so."""

    @classmethod
    def begin(cls, guard: Guard | None, task: Task, capture: Capture) -> Guarded | None:
        watch = guard.watch(task) if guard is not None else None
        return cls(guard, watch, capture) if guard is not None and watch is not None else None

    async def stopped(self, message: Message, call_id: int) -> dict[str, Blocked]:
        """By tool call id; the model call `call_id` sampled the message. With `loss=mask` it trains no
        token then: neither is the try rewarded by a later success, nor punished."""
        found: dict[str, Blocked] = {}
        for call in message.get("tool_calls") or ():
            blocked = await self.watch.check(call, turn=call_id)
            if blocked is not None:
                found[call["id"]] = blocked
        if found:
            self.turns.append(call_id)
            self.ended = self.guard.action == "end"
            if self.guard.loss == "mask":
                self.capture.leave_out(call_id)
        return found

    def penalties(self) -> list[tuple[float, int]]:
        """Rewards, and the model calls whose last token they are put on."""
        if self.guard.loss != "penalise" or not self.guard.penalty:
            return []
        return [(-self.guard.penalty, call) for call in self.turns]

    def scan(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        self.findings = list(self.watch.scan(before, after))

    @property
    def forfeited(self) -> bool:
        """Whether the attempt earns nothing: a hack has ended it, or its changes show one."""
        return self.ended or (bool(self.findings) and self.guard.on_finding == "zero")

    def report(self, built: Built) -> dict[str, Any]:
        """For `info["guard"]`. `masked`: [trace, first token, token after the last] of each turn that was left
        out of training and stands in a trace as context."""
        return {
            **self.watch.report(),
            "loss": self.guard.loss,
            "blocked_turns": len(self.turns),
            "ended": self.ended,
            "masked": [list(span) for span in built.spans(self.capture.left_out)],
        }


def files_of(directory: Path, *, shown_as: str) -> dict[str, str]:
    """Text files below a directory by the path that the agent sees; big and binary ones are left out."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if len(found) >= MAX_FILES:
            break
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = path.read_bytes().decode()
        except (UnicodeDecodeError, OSError):
            continue
        found[f"{shown_as}/{path.relative_to(directory)}"] = text
    return found


class ServedCalls:
    """What a client was given in place of stopped calls; its conversations, put right again.

    The client runs the harmless call, and sends both that and its result back. What the policy said, and
    what it reads, is joined by the tool call's id.
    """

    def __init__(self) -> None:
        self._stopped: dict[str, tuple[Mapping[str, Any], Blocked]] = {}

    def serve(self, message: Message, stopped: Mapping[str, Blocked]) -> Message:
        """The message as the client gets it."""
        if not stopped:
            return message
        calls = []
        for call in message["tool_calls"]:
            blocked = stopped.get(call["id"])
            if blocked is not None:
                self._stopped[call["id"]] = (call, blocked)
                call = {**call, "arguments": dict(blocked.arguments)}
            calls.append(call)
        return {**message, "tool_calls": calls}

    def restored(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A client's conversation as the policy had it."""
        if not self._stopped:
            return tuple(messages)
        return tuple(self._restored(message) for message in messages)

    def _restored(self, message: Message) -> Message:
        calls = message.get("tool_calls")
        if calls and any(call.get("id") in self._stopped for call in calls):
            own = [self._stopped[c["id"]][0] if c.get("id") in self._stopped else c for c in calls]
            return {**message, "tool_calls": own}
        known = self._stopped.get(str(message.get("tool_call_id")))
        if message["role"] != "tool" or known is None:
            return message
        blocked = known[1]
        content = str(message.get("content") or "")
        for new, old in blocked.rewrites.items():
            content = content.replace(new, old)
        return {**message, "content": blocked.result if blocked.whole else content}
