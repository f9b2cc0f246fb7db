"""`bash` and `python`: a command, with its output, its exit code, and which limit it ran into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envs.tools.tool import Tool, ToolOutput, ToolSettings, cut, parameters, text_of
from rlframe.sandbox.protocol import ExecResult, Sandbox

LIMIT_NOTES = {
    "time": "[ended: its time was up]",
    "memory": "[ended: out of memory]",
    "processes": "[the limit of processes was reached]",
    "disk": "[the disk is full]",
}
TIMEOUT = {"type": "number", "description": "seconds that it may take"}


async def run_bash(
    sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings
) -> ToolOutput:
    return await _run(sandbox, given["command"], b"", given, settings)


async def run_python(
    sandbox: Sandbox, given: Mapping[str, Any], settings: ToolSettings
) -> ToolOutput:
    code = given["code"].encode("utf-8", errors="surrogateescape")
    return await _run(sandbox, ["python3", "-"], code, given, settings)


async def _run(
    sandbox: Sandbox,
    command: str | Sequence[str],
    stdin: bytes,
    given: Mapping[str, Any],
    settings: ToolSettings,
) -> ToolOutput:
    asked = float(given.get("timeout_s", settings.timeout_s))
    # `not (asked > 0)` also holds for nan
    seconds = settings.timeout_s if not asked > 0 else min(asked, settings.max_timeout_s)
    result = await sandbox.exec(
        command,
        stdin=stdin,
        cwd=settings.workdir,
        timeout_s=seconds,
        max_output_bytes=4 * settings.max_chars,
    )
    return shown(result, settings)


def shown(result: ExecResult, settings: ToolSettings) -> ToolOutput:
    """Both streams, then what a person would want to know of the end."""
    text, missing = cut(text_of(result.stdout + result.stderr), settings.max_chars)
    dropped = result.dropped_stdout + result.dropped_stderr
    notes = [f"[{dropped} more bytes were dropped]"] if dropped else []
    if result.limit:
        notes.append(LIMIT_NOTES[result.limit])
    if result.exit_code != 0:
        notes.append(f"[exit code {result.exit_code}]")
    if not text and not notes:
        notes = ["[no output]"]
    ended = text if not text or text.endswith("\n") or not notes else f"{text}\n"
    return ToolOutput(ended + "\n".join(notes), result.exit_code, result.limit, missing + dropped)


def worded(_: Mapping[str, Any], said: str) -> str:
    """A command that says so and fails, or one that finds nothing to say."""
    stderr = f"{said}\n".encode() if said else b""
    return shown(ExecResult(1 if said else 0, b"", stderr, seconds=0.0), ToolSettings()).text


BASH = Tool(
    "bash",
    "Run a bash command. Every call is a new shell in the work directory; files and background "
    "processes stay.",
    parameters(["command"], command={"type": "string"}, timeout_s=TIMEOUT),
    run_bash,
    worded,
)
PYTHON = Tool(
    "python",
    "Run Python 3 code as a script in the work directory; print what you want to see.",
    parameters(["code"], code={"type": "string"}, timeout_s=TIMEOUT),
    run_python,
    worded,
)
