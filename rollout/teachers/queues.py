"""What waits for which teacher, and which engine takes what next. No clock of its own, no processes.

    queues.add(requests, now)
    turn = queues.next_turn(engine, engines, now)       # a teacher, or None: stay idle
    requests = queues.take(teacher, tokens)             # what an engine is given

An engine goes on with the teacher that it has while there is work for it. A swap to another teacher waits
until that pays: until its work would take as long as the swap, or has waited as long (the rule of the ski
rental: never more than twice what knowing the future would have cost). So single traces that trickle
in cost no swap each, and what is there at once is begun at once. An engine that always finds work leaves
it after a turn of `LONGEST_TURN` swaps, for the teacher that has waited longest and at least as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlframe.teaching import ScoreRequest
from rollout.teachers.schedule import EngineState, SwapSeconds, plan

LONGEST_TURN = 20.0


@dataclass(slots=True)
class Waiting:
    """One trace in the queue."""

    request: ScoreRequest
    since_s: float
    attempts: int = 0
    """How often it was given to an engine that failed; from then on it goes alone."""


@dataclass(slots=True)
class Queues:
    tokens_per_s: float
    """Of one engine: what turns tokens into seconds for a plan. Kept up to date by `observe`."""
    _waiting: dict[str, deque[Waiting]] = field(default_factory=dict)
    _tokens: dict[str, int] = field(default_factory=dict)

    def add(self, requests: Iterable[ScoreRequest], now: float) -> None:
        for request in requests:
            self._put(Waiting(request, now), first=False)

    def put_back(self, waiting: Waiting) -> None:
        """In front: it has waited longest."""
        self._put(waiting, first=True)

    def _put(self, waiting: Waiting, *, first: bool) -> None:
        teacher = waiting.request.teacher
        queue = self._waiting.setdefault(teacher, deque())
        (queue.appendleft if first else queue.append)(waiting)
        self._tokens[teacher] = self._tokens.get(teacher, 0) + len(waiting.request.token_ids)

    def take(self, teacher: str, tokens: int) -> list[Waiting]:
        """The oldest traces of one teacher and one `top_k`, up to so many tokens, at least one. One that
        an engine failed at comes alone, lest it fail others again."""
        queue = self._waiting.get(teacher)
        taken: list[Waiting] = []
        total = 0
        while queue:
            found = queue[0]
            length = len(found.request.token_ids)
            other = taken and (
                total + length > tokens
                or found.attempts
                or found.request.top_k != taken[0].request.top_k
            )
            if other:
                break
            taken.append(queue.popleft())
            total += length
            if found.attempts:
                break
        self._tokens[teacher] = self._tokens.get(teacher, 0) - total
        return taken

    def drop_all(self) -> list[Waiting]:
        """Everything that waits, taken out."""
        dropped = [waiting for queue in self._waiting.values() for waiting in queue]
        self._waiting.clear()
        self._tokens.clear()
        return dropped

    def observe(self, tokens: int, seconds: float) -> None:
        """An engine took so long for so many tokens: a moving average."""
        if seconds > 0 and tokens > 0:
            self.tokens_per_s += 0.3 * (tokens / seconds - self.tokens_per_s)

    def work_s(self) -> dict[str, float]:
        """Seconds of one engine's time, by teacher that has work waiting."""
        return {
            teacher: self._tokens[teacher] / self.tokens_per_s
            for teacher, queue in self._waiting.items()
            if queue
        }

    def waits(self, teacher: str) -> bool:
        return bool(self._waiting.get(teacher))

    def suspects(self, teacher: str) -> bool:
        """The next trace of it is one that an engine has failed at."""
        queue = self._waiting.get(teacher)
        return bool(queue and queue[0].attempts)

    def waited_s(self, teacher: str, now: float) -> float:
        """How long the oldest has waited; 0 where none does."""
        queue = self._waiting.get(teacher)
        return now - queue[0].since_s if queue else 0.0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def next_turn(
        self, engine: int, engines: Sequence[EngineState], swap_s: SwapSeconds, now: float
    ) -> str | None:
        """The teacher whose work `engine`, which is free, takes now."""
        loaded = engines[engine].loaded
        work_s = self.work_s()
        if loaded in work_s:
            return self._starved(engine, engines, swap_s, work_s, now) or loaded
        pay = {
            teacher
            for teacher in work_s
            if teacher != loaded and self._pays(teacher, engine, loaded, swap_s, work_s, now)
        }
        if not pay:
            return None
        turns = plan(work_s, engines, swap_s).turns[engine]
        return next((teacher for teacher, _ in turns if teacher in pay), None)

    def upcoming(
        self, engine: int, engines: Sequence[EngineState], swap_s: SwapSeconds
    ) -> str | None:
        """The teacher after the present one, to be made ready meanwhile."""
        turns = plan(self.work_s(), engines, swap_s).turns[engine]
        return next((t for t, _ in turns if t != engines[engine].loaded), None)

    def _pays(
        self,
        teacher: str,
        engine: int,
        loaded: str | None,
        swap_s: SwapSeconds,
        work_s: dict[str, float],
        now: float,
    ) -> bool:
        cost = swap_s(engine, loaded, teacher)
        return loaded is None or work_s[teacher] >= cost or self.waited_s(teacher, now) >= cost

    def _starved(
        self,
        engine: int,
        engines: Sequence[EngineState],
        swap_s: SwapSeconds,
        work_s: dict[str, float],
        now: float,
    ) -> str | None:
        """The teacher that no engine has and that has waited longest, once this engine's turn is over."""
        state = engines[engine]
        have = {other.loaded for other in engines}
        waited = {
            teacher: self.waited_s(teacher, now)
            for teacher in work_s
            if teacher not in have
            and min(state.turn_s, self.waited_s(teacher, now))
            > LONGEST_TURN * swap_s(engine, state.loaded, teacher)
        }
        return max(waited, key=waited.__getitem__, default=None)
