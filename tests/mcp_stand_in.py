"""A stand-in for an MCP server over stdio, for where the SDK is not installed: two tools, some faults."""

import json
import sys

TOOLS = [
    {"name": "add", "description": "Add.", "inputSchema": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}},
    {"name": "fail", "inputSchema": {"type": "object", "properties": {}}},
    {"name": "die", "inputSchema": {"type": "object", "properties": {}}},
    {"name": "hang", "inputSchema": {"type": "object", "properties": {}}},
]  # fmt: skip


def answer(method: str, given: dict) -> dict:
    if method == "initialize":
        return {"result": {"protocolVersion": given["protocolVersion"], "capabilities": {}}}
    if method == "tools/list":
        page = int(given.get("cursor") or 0)
        more = {"nextCursor": str(page + 2)} if page + 2 < len(TOOLS) else {}
        return {"result": {"tools": TOOLS[page : page + 2], **more}}
    if given["name"] == "add":
        total = given["arguments"].get("a", 0) + given["arguments"].get("b", 0)
        return {"result": {"content": [{"type": "text", "text": str(total)}, {"type": "image"}]}}
    if given["name"] == "die":
        sys.exit(1)
    if given["name"] == "hang":
        sys.stdin.read()
    return {"error": {"code": -32602, "message": "it failed"}}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        print("a print of the server's own")
        reply = {
            "jsonrpc": "2.0",
            "id": message["id"],
            **answer(message["method"], message["params"]),
        }
        print(json.dumps(reply), flush=True)
