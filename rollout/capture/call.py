"""One model call, as the call log keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rlframe.types import Float32Array, Int32Array

MAIN_THREAD = "main"


class CallKind(StrEnum):
    """What a call was for. Which kinds train is configured (`rollout.capture.untrained`)."""

    TURN = "turn"
    """An agent's or a sub-agent's own turn."""
    COMPACTION = "compaction"
    """A summary of the context so far, from which the context restarts."""
    SIDE = "side"
    """Not part of the work: a title, a topic, a safety check of the program's own."""
    SMALL_MODEL = "small_model"
    """Asked of the program's small model: not what the policy is trained to do."""


class CallStatus(StrEnum):
    OK = "ok"
    """Sampled whole, and handed to the client."""
    ABORTED = "aborted"
    """The client had hung up when the answer came: nobody has seen it, and it never trains."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One served generation, without what it shares with an earlier one. P prompt and O output tokens.

    `id` counts the calls of an attempt in the order in which they were logged. Nothing assumes that
    order to mean more: calls of one attempt may run at the same time.
    """

    id: int
    base: int | None
    """The prompt begins with the first `kept` tokens of this call's prompt and output."""
    kept: int
    new_prompt_ids: Int32Array  # [P - kept]
    output_ids: Int32Array  # [O]
    logprobs: Float32Array  # [O] log p of each sampled token, at the sampling temperature
    versions: Int32Array  # [O] weight version that sampled each token
    finish_reason: str
    thread: str = MAIN_THREAD
    """Whose call it is: `main`, or a sub-agent's name, unique in the attempt."""
    kind: CallKind = CallKind.TURN
    status: CallStatus = CallStatus.OK
    digest: str = ""
    """Of the request as the client sent it, for retries."""
    bridged: bool = False
    """The prompt was built on stored ids; False: the messages were rendered whole."""
    started_s: float = 0.0
    ended_s: float = 0.0
    left_out: bool = False
    """As the log says it: a guard stopped what it called, and it does not train."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What the engine returned besides (routed experts, indexer ids), JSON-serialisable."""

    @property
    def prompt_tokens(self) -> int:
        return self.kept + len(self.new_prompt_ids)

    @property
    def tokens(self) -> int:
        """Length of the call's path."""
        return self.prompt_tokens + len(self.output_ids)


@dataclass(slots=True)
class Thread:
    """One agent of an attempt: the main one, or a sub-agent that another thread's call spawned."""

    name: str = MAIN_THREAD
    parent: str = ""
    """Name of the thread that spawned it; empty for the main thread, or where nobody can tell."""
    spawned_by: int | None = None
    """Id of the parent's call that spawned it; None: the parent's last call before its own first."""
    joined_by: int | None = None
    """Id of the parent's first call that saw its result; None: nobody did."""
