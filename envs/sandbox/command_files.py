"""File operations by commands, for backends that can do no more than run one."""

from __future__ import annotations

import errno
import posixpath
import shlex
from collections.abc import Awaitable, Callable, Sequence

from rlframe.sandbox.protocol import ExecResult

Run = Callable[..., Awaitable[ExecResult]]
"""(command, stdin=..., max_output_bytes=...)"""
KNOWN = {
    "No such file or directory": errno.ENOENT,
    "Is a directory": errno.EISDIR,
    "Permission denied": errno.EACCES,
    "No space left on device": errno.ENOSPC,
    "Not a directory": errno.ENOTDIR,
}


async def read(run: Run, path: str, max_bytes: int) -> bytes:
    quoted = shlex.quote(path)
    known = f'test -d {quoted} && {{ echo "Is a directory" >&2; exit 1; }}'
    command = f"{known}; test -e {quoted} || {{ echo 'No such file or directory' >&2; exit 1; }}; "
    command += f"test -f {quoted} || {{ echo 'Invalid argument' >&2; exit 1; }}; "
    result = await run(f"{command}head -c {max_bytes} {quoted}", max_output_bytes=2 * max_bytes + 2)
    return _output(result, path)


async def write(run: Run, path: str, content: bytes, mode: int) -> None:
    quoted, parent = shlex.quote(path), shlex.quote(posixpath.dirname(path) or "/")
    script = f"mkdir -p {parent} && cat > {quoted} && chmod {mode:o} {quoted}"
    _output(await run(script, stdin=content), path)


async def upload(run: Run, archive: bytes, directory: str) -> None:
    quoted = shlex.quote(directory)
    script = f"mkdir -p {quoted} && tar -x -C {quoted} --no-same-owner -f -"
    _output(await run(script, stdin=archive), directory)


async def snapshot(run: Run, paths: Sequence[str], max_bytes: int) -> bytes:
    names = " ".join(shlex.quote(path.lstrip("/") or ".") for path in paths)
    result = await run(f"tar -c -C / -f - {names}", max_output_bytes=2 * max_bytes + 2)
    return _output(result, ", ".join(paths))


def _output(result: ExecResult, path: str) -> bytes:
    if result.exit_code == 0:
        if result.dropped_stdout:
            raise OSError(errno.EFBIG, "is larger than allowed", path)
        return result.stdout
    said = result.stderr.decode(errors="replace").strip()
    number = next((code for text, code in KNOWN.items() if text in said), errno.EIO)
    raise OSError(number, said[-200:] or f"ended with {result.exit_code}", path)


def both_ends(output: bytes, limit: int) -> tuple[bytes, int]:
    """At most `limit` bytes, its beginning and its end; how many are missing between them."""
    half = max(limit // 2, 1)
    if len(output) <= 2 * half:
        return output, 0
    return output[:half] + output[-half:], len(output) - 2 * half
