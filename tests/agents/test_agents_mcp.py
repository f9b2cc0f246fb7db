"""A server made with the real MCP SDK, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from pathlib import Path

import pytest
from peers import needs_peer

from envs.adapters.mcp_client import connect_http, connect_stdio
from envs.adapters.peer import peer_python

SDK_SERVER = """
import sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("sums")

@server.tool()
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

@server.tool()
def fail() -> str:
    raise ValueError("it failed")

if sys.argv[1] == "stdio":
    server.run(transport="stdio")
else:
    server.run(transport=sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]))
"""


@needs_peer("mcp")
@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
async def test_the_real_sdks_server(transport: str, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SDK_SERVER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [peer_python("mcp"), str(script), transport, str(port)]
    process = None
    if transport == "stdio":
        server = await connect_stdio(command)
    else:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            await asyncio.sleep(0.05)
        server = await connect_http(f"http://127.0.0.1:{port}/mcp")
    try:
        tools = {tool["name"]: tool for tool in await server.tools()}
        assert tools["add"]["description"] == "Add two numbers."
        assert await server.call("add", {"a": 20, "b": 22}) == "42"
        assert (await server.call("fail", {})).startswith("Error: ")
        assert (await server.call("add", {"a": "x"})).startswith("Error: ")
    finally:
        await server.close()
        if process is not None:
            process.kill()
            process.wait()
