"""`read`, `write`, `edit`, `search`: files as texts; bytes that are no UTF-8 survive an edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.tools.shell import shown
from envs.tools.tool import Tool, ToolError, ToolOutput, ToolSettings, cut, parameters, text_of
from rlframe.sandbox.protocol import Sandbox

MAX_FILE_BYTES = 16 << 20
DEFAULT_LINES = 400
NO_MATCHES = "[no matches]"
NOT_THERE = "'old' does not stand in"
PATH = {"type": "string", "description": "absolute, or from the work directory"}


async def read(sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings) -> ToolOutput:
    lines = text_of(await _content(sandbox, given["path"], settings)).splitlines()
    first = max(given.get("first_line", 1), 1)
    count = max(given.get("lines", DEFAULT_LINES), 1)
    chosen = lines[first - 1 : first - 1 + count]
    text, missing = cut(
        "\n".join(f"{number:6d}  {line}" for number, line in enumerate(chosen, first)),
        settings.max_chars,
    )
    left = len(lines) - (first - 1) - len(chosen)
    if not chosen:
        return ToolOutput(f"[the file has {len(lines)} lines]")
    return ToolOutput(text + (f"\n[{left} more lines]" if left > 0 else ""), cut_chars=missing)


async def write(sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings) -> ToolOutput:
    content = _encoded(given["content"])
    await _written(sandbox, given["path"], content, settings)
    return ToolOutput(f"Wrote {len(content)} bytes to {given['path']}.")


async def edit(sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings) -> ToolOutput:
    """Replaces a text that stands there once, or everywhere with `all`."""
    old, new, path = _encoded(given["old"]), _encoded(given["new"]), given["path"]
    if not old:
        raise ToolError("Error: 'old' is empty.")
    content = await _content(sandbox, path, settings)
    times = content.count(old)
    if times == 0:
        raise ToolError(f"Error: {NOT_THERE} {path}.")
    if times > 1 and not given.get("all", False):
        raise ToolError(
            f"Error: 'old' stands {times} times in {path}: give more of its surroundings, or all=true."
        )
    await _written(sandbox, path, content.replace(old, new), settings)
    return ToolOutput(f"Replaced {times} in {path}.")


async def search(sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings) -> ToolOutput:
    """grep: lines with their files and numbers."""
    words = ["grep", "-rnIE", "--exclude-dir=.git"]
    if "files" in given:
        words.append(f"--include={given['files']}")
    words += ["-e", given["pattern"], "--", given.get("path", ".")]
    result = await sandbox.exec(
        words,
        cwd=settings.workdir,
        timeout_s=settings.timeout_s,
        max_output_bytes=4 * settings.max_chars,
    )
    if result.exit_code == 1 and not result.stderr:
        return ToolOutput(NO_MATCHES, 1)
    return shown(result, settings)


async def _content(sandbox: Sandbox, path: str, settings: ToolSettings) -> bytes:
    try:
        return await sandbox.read(settings.path(path), max_bytes=MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise ToolError(f"Error: {path}: {_reason(error)}") from None


async def _written(sandbox: Sandbox, path: str, content: bytes, settings: ToolSettings) -> None:
    try:
        await sandbox.write(settings.path(path), content)
    except (OSError, ValueError) as error:
        raise ToolError(f"Error: {path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _encoded(text: str) -> bytes:
    """Lone surrogates, which JSON can carry, too."""
    return text.encode("utf-8", errors="surrogatepass")


def _failed(_: Mapping[str, Any], said: str) -> str:
    return f"Error: {said}"


def _not_there(given: Mapping[str, Any], _: str) -> str:
    return f"Error: {NOT_THERE} {given['path']}."


def _no_matches(_: Mapping[str, Any], __: str) -> str:
    return NO_MATCHES


READ = Tool(
    "read",
    "Show a text file with line numbers.",
    parameters(
        ["path"],
        path=PATH,
        first_line={"type": "integer"},
        lines={"type": "integer", "description": f"how many; {DEFAULT_LINES} if not given"},
    ),
    read,
    _failed,
)
WRITE = Tool(
    "write",
    "Write a file, whole.",
    parameters(["path", "content"], path=PATH, content={"type": "string"}),
    write,
    _failed,
)
EDIT = Tool(
    "edit",
    "Replace a text in a file. `old` must stand there exactly once, unless all=true.",
    parameters(
        ["path", "old", "new"],
        path=PATH,
        old={"type": "string"},
        new={"type": "string"},
        all={"type": "boolean"},
    ),
    edit,
    _not_there,
)
SEARCH = Tool(
    "search",
    "Find lines that match an extended regular expression.",
    parameters(
        ["pattern"],
        pattern={"type": "string"},
        path={
            "type": "string",
            "description": "file or directory; the work directory if not given",
        },
        files={"type": "string", "description": "only files with such names, like *.py"},
    ),
    search,
    _no_matches,
)
