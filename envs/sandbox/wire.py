"""Messages to and from a sandbox's supervisor (`rlframe/sandbox/inside/supervisor.py`).

Requests are marshalled: they are ours. Answers are a head of fixed size and as many bytes as it says, since
what comes out of a sandbox is anybody's data.
"""

from __future__ import annotations

import asyncio
import marshal
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEAD = struct.Struct(">IBBBBdQQQQ")
DONE, READY, REFUSED, CRASHED = range(4)
MAX_BYTES = 1 << 30
MARSHAL_VERSION = 2
"""Read by every Python 3."""


class Garbled(Exception):  # noqa: N818
    """What was read is no answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    id: int
    kind: int
    exit_code: int
    timed_out: bool
    disk_full: bool
    seconds: float
    stdout: bytes
    stderr: bytes
    dropped: tuple[int, int]


def encode(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    body = marshal.dumps((dict(header), payload), MARSHAL_VERSION)
    return struct.pack(">I", len(body)) + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Raises asyncio.IncompleteReadError at the end, Garbled for anything that is no answer."""
    head = HEAD.unpack(await reader.readexactly(HEAD.size))
    number, kind, code, timed_out, full, seconds, out, err, dropped_out, dropped_err = head
    if kind > CRASHED or out > MAX_BYTES or err > MAX_BYTES:
        raise Garbled(f"an answer of kind {kind} with {out} and {err} bytes")
    stdout = await reader.readexactly(out)
    stderr = await reader.readexactly(err)
    return Answer(
        number,
        kind,
        code,
        bool(timed_out),
        bool(full),
        seconds,
        stdout,
        stderr,
        (dropped_out, dropped_err),
    )
