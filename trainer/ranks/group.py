"""The ranks of one role, seen from the driver: calls on all of them, and the death of any.

Each rank has one call that never returns (`watch`). It fails the moment the rank's process dies,
which Ray notices within milliseconds on a live node, so that nobody has to wait for a collective to
time out. A rank that is stopped or hung is found by its silence. The first death, silence or error ends the whole role: its other ranks are stuck in a collective, and
are killed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rlframe.errors import RunError, UserError
from trainer.ranks.cpu_memory import KEEP_FREED_MEMORY
from trainer.ranks.heartbeat import Heartbeat
from trainer.ranks.rank import WATCH, RoleRank
from trainer.ranks.spec import RankInfo, RankSpec

T = TypeVar("T")

BLAME_GRACE_S = 2.0
"""A rank that loses its peer fails too, and may be heard first: how long to wait for the death."""
SHUTDOWN_S = 5.0


class RankCall(Generic[T]):
    """One call on every rank; a `Pending`."""

    def __init__(
        self, group: RankGroup, what: str, refs: Sequence[Any], join: Callable[[list[Any]], T]
    ) -> None:
        self._group, self._what, self._refs, self._join = group, what, refs, join
        self._joined: list[T] = []

    def result(self) -> T:
        if not self._joined:
            self._joined.append(self._join(self._group.wait(self._refs, self._what)))
        return self._joined[0]


def _environment(spec: RankSpec) -> dict[str, Any]:
    """Ray adds these variables to the job's own."""
    return {"runtime_env": {"env_vars": KEEP_FREED_MEMORY}} if spec.device == "cpu" else {}


class RankGroup:
    """Creates the actors; Ray schedules each by its own options."""

    def __init__(
        self,
        specs: Sequence[RankSpec],
        scheduling: Sequence[Mapping[str, Any]],
        *,
        silent_rank_s: float,
    ) -> None:
        self.role = specs[0].role
        actor = ray.remote(concurrency_groups={WATCH: 2})(RoleRank)
        self._ranks = [
            actor.options(**_environment(spec), **options).remote(spec)
            for spec, options in zip(specs, scheduling, strict=True)
        ]
        self._watches = [
            rank.watch.options(concurrency_group=WATCH).remote() for rank in self._ranks
        ]
        self._silent_rank_s = silent_rank_s
        self._heartbeat = Heartbeat(
            lambda rank: self._ranks[rank].ping.options(concurrency_group=WATCH).remote(),
            ranks=len(self._ranks),
            silent_after_s=silent_rank_s,
        )
        self._failure: RunError | UserError | None = None
        self.infos: list[RankInfo] = []

    def __len__(self) -> int:
        return len(self._ranks)

    def begin_start(self) -> list[Any]:
        """One reference a rank, to its RankInfo. Rank 0's address reaches the others inside Ray."""
        address = self._ranks[0].rendezvous.remote()
        return [rank.start.remote(address) for rank in self._ranks]

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`method(*arguments[i])` on rank i; returns references. RunError if the role has failed."""
        self.check()
        return [
            getattr(rank, method).remote(*given)
            for rank, given in zip(self._ranks, arguments, strict=True)
        ]

    def wait(
        self,
        refs: Sequence[Any],
        what: str,
        *,
        timeout_s: float | None = None,
        arrived: Callable[[int, Any], None] = lambda rank, answer: None,
    ) -> list[Any]:
        """Every rank's answer, by rank. `arrived(rank, answer)` is told as they come.

        Raises RunError or UserError as soon as a rank has died or failed, and when time is up. Without
        a time limit of its own, also when a rank has been silent for `trainer.silent_rank_s`.
        """
        answers: dict[int, Any] = {}
        number = {ref: rank for rank, ref in enumerate(refs)}
        waiting = [*refs, *self._watches]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while len(answers) < len(refs):
            if self._failure is not None:
                raise self._failure
            every_s = self._heartbeat.every_s
            left = every_s if deadline is None else max(0.0, deadline - time.monotonic())
            ready, waiting = _ready(waiting, left)
            if not ready and deadline is None:
                self._check_silence(what)
                continue
            if not ready:
                missing = sorted(set(number.values()) - answers.keys())
                raise self._fail(
                    RunError(
                        f"{self.role} ranks {missing} did not finish {what} in {timeout_s:g} s"
                    )
                )
            for ref in ready:
                try:
                    answer = ray.get(ref)
                except RayError as error:
                    raise self._blame(number.get(ref), error, what) from error
                answers[number[ref]] = answer
                arrived(number[ref], answer)
        return [answers[rank] for rank in range(len(refs))]

    def check(self) -> None:
        """RunError if a rank has died since the last look; never waits."""
        if self._failure is not None:
            raise self._failure
        dead = self._death(wait_s=0.0)
        if dead is not None:
            raise self._blame(None, dead[1], "waiting for work")

    def close(self) -> None:
        """Ends the ranks: asks them to leave their groups, then kills; returns when all are gone."""
        if self._failure is None:
            self._failure = RunError(f"the {self.role}'s ranks are closed")
            farewells = [rank.shutdown.remote() for rank in self._ranks]
            ray.wait(farewells, num_returns=len(farewells), timeout=SHUTDOWN_S)
        self._kill()

    def _check_silence(self, what: str) -> None:
        silent = self._heartbeat.silent_rank()
        if silent is not None:
            raise self._fail(
                RunError(
                    f"{self._name(silent)} has not answered for {self._silent_rank_s:g} s while {what} "
                    "(trainer.silent_rank_s): its process is stopped or hung"
                )
            )

    def _kill(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        ray.wait(self._watches, num_returns=len(self._watches), timeout=SHUTDOWN_S)

    def _blame(self, rank: int | None, error: RayError, what: str) -> RunError | UserError:
        """Finds the rank at fault, ends the role, and says so."""
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, UserError):
            return self._fail(UserError(str(cause)))
        dead = self._death(wait_s=BLAME_GRACE_S)
        if dead is not None:
            rank, death = dead
            return self._fail(
                RunError(f"{self._name(rank)} died while {what}: {_exit_reason(death)}")
            )
        reason = f"{type(cause or error).__name__}: {cause or error}".strip()
        name = self._name(rank) if rank is not None else f"a {self.role} rank"
        return self._fail(RunError(f"{name} failed while {what}: {reason}"))

    def _death(self, *, wait_s: float) -> tuple[int, RayError] | None:
        ready, _ = ray.wait(self._watches, num_returns=1, timeout=wait_s)
        for ref in ready:
            try:
                ray.get(ref)
            except RayError as error:
                return self._watches.index(ref), error
        return None

    def _fail(self, failure: RunError | UserError) -> RunError | UserError:
        self._failure = failure
        self._kill()
        return failure

    def _name(self, rank: int) -> str:
        where = ""
        if rank < len(self.infos):
            info = self.infos[rank]
            where = f" on host {info.host} (pid {info.pid})"
        return f"{self.role} rank {rank} of {len(self._ranks)}{where}"


def _ready(refs: list[Any], timeout_s: float | None) -> tuple[list[Any], list[Any]]:
    """All that is ready, once anything is; nothing when time is up."""
    first, rest = ray.wait(refs, num_returns=1, timeout=timeout_s)
    if not first or not rest:
        return first, rest
    more, rest = ray.wait(rest, num_returns=len(rest), timeout=0)
    return [*first, *more], rest


def _exit_reason(error: RayError) -> str:
    """Ray's own account of the death, without its advice."""
    text = str(error)
    if not isinstance(error, RayActorError):
        return text.strip().splitlines()[0]
    found = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text, re.DOTALL)
    return (found.group(1) if found else text).strip().replace("\n", " ")
