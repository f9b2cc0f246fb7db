"""Keys and the sessions that they open.

A key is the secret of one attempt. Only a digest of it is kept, made with a secret of this process:
how long a look-up takes says nothing about a key, and no dump of this object shows one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rollout.chat import AttemptOver, ChatRequest, Reply
from rollout.gateway.clients.seen import MainNames
from rollout.gateway.errors import ApiError

KEY_PREFIX = "rk-"
"""A key never begins with a dash: it may be an argument of a program."""
REMEMBERED_ENDED = 100_000
"""So many ended attempts' keys are still told apart from unknown ones."""


class ChatSession(Protocol):
    """What the gateway needs of `rollout.session.Session`."""

    @property
    def model(self) -> str: ...

    async def chat(self, request: ChatRequest) -> Reply:
        """Raises AttemptOver, TaskFault, InfraFault. Cancelled where the client hangs up."""
        ...

    def count_tokens(self, request: ChatRequest) -> int: ...


@dataclass(frozen=True, slots=True)
class RequestCaps:
    """Against a program that floods. The budgets of an attempt are its session's own."""

    max_requests: int = 10_000
    """Of one attempt; refused ones count. After that 400, which ends a client."""
    max_concurrent: int = 64
    """Requests of one attempt that are being read or served; more are told to try again (503)."""


DEFAULT_CAPS = RequestCaps()


@dataclass(slots=True, eq=False)
class Seat:
    """One session's place in the gateway."""

    session: ChatSession
    caps: RequestCaps
    main: MainNames = field(default_factory=MainNames)
    requests: int = 0
    in_flight: int = 0

    def enter(self) -> None:
        """Raises ApiError over a cap. Every `enter` that returns needs its `leave`."""
        self.requests += 1
        if self.requests > self.caps.max_requests:
            raise ApiError(
                400, f"the attempt's cap of {self.caps.max_requests} requests is reached"
            )
        if self.in_flight >= self.caps.max_concurrent:
            raise ApiError(503, "too many requests at once; try again")
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1


class Registry:
    """key = registry.open(session); ...; registry.close(key)"""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._seats: dict[bytes, Seat] = {}
        self._ended: set[bytes] = set()
        self._ended_in_order: deque[bytes] = deque()

    def __len__(self) -> int:
        """Sessions that are open."""
        return len(self._seats)

    def open(self, session: ChatSession, *, caps: RequestCaps = DEFAULT_CAPS) -> str:
        """The new key. It is shown here, once."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        self._seats[self._digest(key)] = Seat(session, caps)
        return key

    def close(self, key: str) -> None:
        """Later requests are answered 400. Those under way end as the session ends them."""
        digest = self._digest(key)
        if self._seats.pop(digest, None) is None:
            return
        self._ended.add(digest)
        self._ended_in_order.append(digest)
        if len(self._ended_in_order) > REMEMBERED_ENDED:
            self._ended.discard(self._ended_in_order.popleft())

    def find(self, headers: Mapping[str, str]) -> Seat:
        """By bearer token or x-api-key. ApiError 401 where neither is a key; AttemptOver for a key
        whose session was closed."""
        ended = False
        for key in presented_keys(headers):
            digest = self._digest(key)
            seat = self._seats.get(digest)
            if seat is not None:
                return seat
            ended = ended or digest in self._ended
        if ended:
            raise AttemptOver("the attempt has ended")
        raise ApiError(401, "the API key is not valid")

    def _digest(self, key: str) -> bytes:
        """Keyed: nobody can aim at a digest, so that comparing digests leaks nothing of keys."""
        presented = key.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(presented, key=self._secret, digest_size=32).digest()


def presented_keys(headers: Mapping[str, str]) -> list[str]:
    keys = []
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        keys.append(token.strip())
    if "x-api-key" in headers:
        keys.append(headers["x-api-key"])
    return keys
