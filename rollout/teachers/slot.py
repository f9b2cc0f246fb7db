"""One place where teachers are served: an actor, what it has loaded, and the calls that it is busy with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from rollout.engine.pulse import Pulse
from rollout.teachers.queues import Queues, Waiting
from rollout.teachers.schedule import EngineState

Kind = Literal["start", "swap", "stage", "score", "sign", "generates"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the actor that is under way."""

    kind: Kind
    teacher: str = ""
    waiting: tuple[Waiting, ...] = ()
    """What a score call is about."""
    began_s: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        return sum(len(waiting.request.token_ids) for waiting in self.waiting)

    @property
    def suspect(self) -> bool:
        """An engine has failed at this trace before: nothing else is risked with it."""
        return any(waiting.attempts for waiting in self.waiting)


@dataclass(slots=True)
class Slot:
    """`fixed`: the teacher of a server outside of the run, which never swaps."""

    name: str
    create: Callable[[], Any]
    """A new actor, not started."""
    calls_at_once: int
    pulse: Pulse | None
    fixed: str = ""
    actor: Any = None
    node: str = ""
    loaded: str | None = None
    version: int = 0
    turn_began_s: float = 0.0
    ready: set[str] = field(default_factory=set)
    """Teachers in shared memory whose files this actor has checked."""
    ahead: str = ""
    """The teacher whose files it was last told to make ready, until its next swap."""
    to_stage: list[str] = field(default_factory=list)
    calls: dict[Any, Call] = field(default_factory=dict)
    scored_until_s: float = 0.0
    """Up to when the time with work in it has been counted."""

    def under_way(self, *kinds: Kind) -> list[Call]:
        return [call for call in self.calls.values() if call.kind in kinds]

    @property
    def free(self) -> bool:
        """It may be given another teacher."""
        return not self.under_way("start", "swap", "score")

    @property
    def takes_more(self) -> bool:
        """It may be given more work of the teacher that it has."""
        scoring = self.under_way("score")
        return (
            self.loaded is not None
            and not self.under_way("start", "swap")
            and len(scoring) < self.calls_at_once
            and not any(call.suspect for call in scoring)
        )


@dataclass(slots=True)
class Group:
    """Slots that take turns on the same teachers, and what waits for them."""

    name: str
    teachers: tuple[str, ...]
    slots: list[Slot]
    queues: Queues
    architectures: dict[str, str]
    """By teacher; empty for a server outside of the run."""
    swap_s: float
    """Seconds of a swap as they were lately."""
    restart_s: float
    """Of one to another architecture."""

    def states(self) -> list[EngineState]:
        """For a plan."""
        rate, now = self.queues.tokens_per_s, time.monotonic()
        return [
            EngineState(
                slot.loaded,
                sum(call.tokens for call in slot.under_way("score")) / rate
                + (self.swap_s if slot.under_way("swap", "start") else 0.0),
                now - slot.turn_began_s,
            )
            for slot in self.slots
        ]

    def swap_cost(self, engine: int, loaded: str | None, teacher: str) -> float:
        """A `SwapSeconds` of this group."""
        if self.slots[engine].fixed:
            return 0.0 if teacher == self.slots[engine].fixed else float("inf")
        same = loaded is None or self.architectures[loaded] == self.architectures[teacher]
        return self.swap_s if same else self.restart_s

    def observe_swap(self, seconds: float, *, restarted: bool) -> None:
        if restarted:
            self.restart_s += 0.5 * (seconds - self.restart_s)
        else:
            self.swap_s += 0.3 * (seconds - self.swap_s)
