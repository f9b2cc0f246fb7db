"""Tool servers that speak MCP (Model Context Protocol), over stdio or streamable HTTP: list and call.

    server = await connect_stdio(["python", "server.py"])        # or connect_http("http://.../mcp")
    tools = await server.tools()                                 # name, description, parameters
    text = await server.call("add", {"a": 1, "b": 2})
    await server.close()

A server that ends, hangs or answers garbage raises InfraFault; a tool that fails is a text for the policy.
Protocol revision 2025-06-18; only what tools need of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from envs.adapters.json_lines import start_program
from rlframe.errors import InfraFault

REVISION = "2025-06-18"
Send = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any] | None]]
"""One JSON-RPC message; its answer, where it is a request."""


@dataclass(slots=True)
class McpServer:
    """A connection. Calls may be under way at the same time."""

    send: Send
    end: Callable[[], Awaitable[None]]
    timeout_s: float = 60.0
    _number: int = 0

    async def begin(self) -> None:
        about = {"name": "rlframe", "version": "1"}
        given = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": about}
        await self._request("initialize", given)
        await self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def tools(self) -> list[dict[str, Any]]:
        """As `ToolEnv.tools` has them."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self._request("tools/list", {"cursor": cursor} if cursor else {})
            for tool in page.get("tools", ()):
                schema = tool.get("inputSchema") or {"type": "object", "properties": {}}
                description = tool.get("description") or ""
                found.append(
                    {"name": tool["name"], "description": description, "parameters": schema}
                )
            cursor = page.get("nextCursor")
            if not cursor:
                return found

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result's text; what the tool or the server objects to begins with `Error: `."""
        try:
            given = {"name": name, "arguments": dict(arguments)}
            result = await self._request("tools/call", given)
        except Refused as error:
            return f"Error: {error}"
        parts = [_text(part) for part in result.get("content", ())]
        if not parts and "structuredContent" in result:
            parts = [json.dumps(result["structuredContent"])]
        text = "\n".join(parts)
        return f"Error: {text}" if result.get("isError") else text

    async def close(self) -> None:
        await self.end()

    async def _request(self, method: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": dict(given)}
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await self.send(message)
        except TimeoutError:
            raise InfraFault(
                f"the MCP server did not answer {method} in {self.timeout_s:g} s"
            ) from None
        if answer is None or not isinstance(answer.get("result", {}), Mapping):
            raise InfraFault(f"the MCP server's answer to {method} is none: {answer!r:.120}")
        if "error" in answer:
            error = answer["error"]
            raise Refused(error.get("message", error) if isinstance(error, Mapping) else error)
        result: Mapping[str, Any] = answer.get("result", {})
        return result


class Refused(InfraFault):
    """A JSON-RPC error: of a call, an answer for the policy; of anything else, the server's fault."""


def _text(part: Mapping[str, Any]) -> str:
    if part.get("type") == "text":
        return str(part.get("text", ""))
    return f"[{part.get('type', 'something')}: {part.get('mimeType', 'not shown')}]"


async def connect_stdio(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> McpServer:
    """Starts the server. It gets only `env` and a PATH."""
    program = await start_program(command, what="the MCP server", env=env)
    return await _begun(McpServer(program.send, program.end, timeout_s))


async def connect_http(
    url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> McpServer:
    """A server that runs already, by its streamable HTTP endpoint."""
    session = aiohttp.ClientSession()
    own = {"Accept": "application/json, text/event-stream", **(headers or {})}

    async def send(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
        try:
            async with session.post(url, json=message, headers=own) as response:
                if "Mcp-Session-Id" in response.headers:
                    own["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
                if response.status >= 400:
                    text = (await response.text())[:200]
                    raise InfraFault(f"the MCP server answers {response.status}: {text}")
                own["MCP-Protocol-Version"] = REVISION
                return await _answer(response, message.get("id"))
        except (aiohttp.ClientError, ValueError) as error:
            raise InfraFault(f"the MCP server at {url}: {error}") from error

    return await _begun(McpServer(send, session.close, timeout_s))


async def _answer(response: aiohttp.ClientResponse, number: Any) -> Mapping[str, Any] | None:
    if number is None:
        return None
    if response.content_type != "text/event-stream":
        body = await response.json()
        return body if isinstance(body, Mapping) else None
    async for line in response.content:
        if line.startswith(b"data:"):
            message = json.loads(line[5:])
            if isinstance(message, Mapping) and message.get("id") == number:
                return message
    return None


async def _begun(server: McpServer) -> McpServer:
    try:
        await server.begin()
    except BaseException:
        await server.close()
        raise
    return server
