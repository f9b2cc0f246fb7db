"""A session with an OpenEnv server, over its WebSocket: reset, step, state.

    session = await connect("http://127.0.0.1:8000", timeout_s=60)
    seen = await session.reset(seed=1)                 # Seen(observation, reward, done)
    seen = await session.step({"message": "hello"})
    state = await session.state()
    await session.close()

A connection is a session with an environment of its own. A server that is not there, is full or ends: InfraFault.
The environment's own exceptions: TaskFault. An action that does not fit the schema: BadActionError, for the policy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from rlframe.errors import InfraFault, TaskFault

OURS = ("CAPACITY_REACHED", "SESSION_ERROR")
"""Error codes that say nothing about the environment's code."""
MAX_MESSAGE = 64 << 20


class BadActionError(Exception):
    """The server did not take an action; why, in its words."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reset or a step returned."""

    observation: Mapping[str, Any]
    reward: Any
    done: bool


@dataclass(slots=True)
class Session:
    """See the module's docstring."""

    http: aiohttp.ClientSession
    socket: aiohttp.ClientWebSocketResponse
    url: str
    timeout_s: float

    async def reset(self, **given: Any) -> Seen:
        return self._seen(await self._ask("reset", given))

    async def step(self, action: Mapping[str, Any]) -> Seen:
        return self._seen(await self._ask("step", action))

    async def state(self) -> Mapping[str, Any]:
        return await self._ask("state", None)

    async def close(self) -> None:
        await self.socket.close()
        await self.http.close()

    async def _ask(self, kind: str, data: Mapping[str, Any] | None) -> Mapping[str, Any]:
        message = {"type": kind, **({"data": dict(data)} if data is not None else {})}
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.socket.send_str(json.dumps(message))
                answer = json.loads(await self.socket.receive_str())
        except TimeoutError:
            raise TaskFault(f"{self.url}: no answer to {kind} in {self.timeout_s:g} s") from None
        except (aiohttp.ClientError, TypeError, ConnectionError) as error:
            raise InfraFault(f"{self.url}: the OpenEnv server has closed the session") from error
        except ValueError as error:
            raise InfraFault(f"{self.url}: the OpenEnv server answers no JSON: {error}") from error
        found = answer.get("data") if isinstance(answer, Mapping) else None
        if not isinstance(found, Mapping):
            raise InfraFault(f"{self.url}: the OpenEnv server answers {answer!r:.120}")
        if answer.get("type") == "error":
            raise self._fault(kind, found)
        return found

    def _fault(self, kind: str, data: Mapping[str, Any]) -> Exception:
        code, said = data.get("code"), str(data.get("message", ""))
        if code == "VALIDATION_ERROR":
            wrong = [
                f"{'.'.join(map(str, error.get('loc', ())))}: {error.get('msg', '')}"
                for error in data.get("errors", ())
            ]
            text = "; ".join(wrong) or said
            return (
                BadActionError(text) if kind == "step" else TaskFault(f"{self.url}: {kind}: {text}")
            )
        if code in OURS:
            return InfraFault(f"{self.url}: {said} ({code})")
        return TaskFault(f"{self.url}: the environment failed in {kind}: {said} ({code})")

    def _seen(self, data: Mapping[str, Any]) -> Seen:
        observation = data.get("observation")
        if not isinstance(observation, Mapping):
            raise InfraFault(f"{self.url}: an answer without observation: {data!r:.120}")
        return Seen(observation, data.get("reward"), data.get("done") is True)


async def connect(url: str, *, timeout_s: float) -> Session:
    """Waits `timeout_s` for the server to answer; InfraFault where it does not."""
    http = aiohttp.ClientSession()
    try:
        async with asyncio.timeout(timeout_s):
            socket = await http.ws_connect(f"{url.rstrip('/')}/ws", max_msg_size=MAX_MESSAGE)
    except BaseException as error:
        await http.close()
        if isinstance(error, aiohttp.ClientError | TimeoutError | OSError | ValueError):
            raise InfraFault(f"there is no OpenEnv server at {url}: {error!r}") from error
        raise
    return Session(http, socket, url, timeout_s)


async def action_schema(url: str, *, timeout_s: float) -> Mapping[str, Any]:
    """JSON schema of the environment's actions. InfraFault where the server does not tell."""
    try:
        timeout = aiohttp.ClientTimeout(timeout_s)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(f"{url.rstrip('/')}/schema", raise_for_status=True) as response,
        ):
            schema = (await response.json())["action"]
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
        raise InfraFault(f"there is no OpenEnv server at {url}: {error!r}") from error
    if not isinstance(schema, Mapping):
        raise InfraFault(f"{url}/schema: the action's schema is {schema!r:.80}")
    return schema
