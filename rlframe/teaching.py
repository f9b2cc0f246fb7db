"""What passes between the loop and the teachers of on-policy distillation: token ids out, logprobs back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlframe.types import Float32Array, Int32Array


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One trace that one teacher shall read, in exactly the tokens that the student saw."""

    id: str
    """Of the trace; unique among what is under way for this teacher."""
    teacher: str
    """A name of the manifest."""
    token_ids: Int32Array
    """[T]"""
    begin: int
    """The first position whose score is wanted, at least 1: nothing comes before position 0."""
    top_k: int = 0
    """As many of the teacher's likeliest tokens at each position."""


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """What a teacher thinks of a trace, at temperature 1."""

    id: str
    teacher: str
    logprobs: Float32Array
    """[T]: log p(token t | those before it), 0 before `begin`."""
    top_ids: Int32Array | None = None
    """[T, k]: candidates for position t, likeliest first; 0 before `begin`."""
    top_logprobs: Float32Array | None = None
    """[T, k]"""
    error: str = ""
    """Why there are no scores (`teachers.on_failure=skip`): nobody may learn from this trace then."""


class TeacherService(Protocol):
    """Scores traces by many teachers on fewer engines; as `RolloutService`, but nothing is sampled.

        service.submit([ScoreRequest(...), ...])         # returns at once; order does not matter
        while missing:
            for scores in service.collect(timeout_s=1.0): ...

    A teacher that dies or answers nonsense is asked again, elsewhere or after a restart. Once that has
    failed as often as configured, `collect` raises RunError (`teachers.on_failure=stop`) or returns
    scores with an `error` (`skip`): every trace that was submitted comes back once.
    """

    def submit(self, requests: Sequence[ScoreRequest]) -> None: ...

    def collect(self, timeout_s: float) -> list[TeacherScores]:
        """Whatever has been scored, as soon as anything has; empty after `timeout_s`."""
        ...

    def metrics(self) -> dict[str, float]:
        """Since the last call: `swaps`, `swap_s`, `queue_s`, `utilisation`, and more of its own."""
        ...

    def close(self) -> None: ...
