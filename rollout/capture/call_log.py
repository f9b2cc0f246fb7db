"""The append-only file of an attempt's calls: the source of truth, readable after any crash.

A file is a header and then one frame a call, or for what is known of a call later: length and crc32 (both little-endian uint32), then msgpack.
A frame that was cut off by a crash ends the reading; everything before it is whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from rollout.capture.call import Call, CallKind, CallStatus

MAGIC = b"rlframe calls 1\n"
_FRAME = struct.Struct("<II")
_ARRAYS = {
    "new_prompt_ids": np.int32,
    "output_ids": np.int32,
    "logprobs": np.float32,
    "versions": np.int32,
}


SUFFIX = ".calls"
LEFT_OUT = "left_out"


def open_log(directory: str, attempt_id: str) -> CallLog | None:
    """The log of an attempt, `<directory>/<attempt id>.calls`; None where no directory is given."""
    return CallLog(Path(directory) / f"{attempt_id}{SUFFIX}") if directory else None


class CallLog:
    """Appends calls to a file. A call is with the operating system when `append` returns, and so
    outlives this process, whatever ends it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = target.open("wb", buffering=0)
        self._file.write(MAGIC)

    def append(self, call: Call) -> None:
        self._write(_described(call))

    def leave_out(self, call_id: int) -> None:
        """A frame of its own: the call's was written before anybody saw its answer."""
        self._write({LEFT_OUT: call_id})

    def _write(self, described: Any) -> None:
        payload = msgspec.msgpack.encode(described)
        self._file.write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)

    def close(self) -> None:
        self._file.close()


def read_calls(path: str | os.PathLike[str]) -> list[Call]:
    """All whole calls of a log. ValueError where it is no call log, or is damaged before its end."""
    data = Path(path).read_bytes()
    if not data.startswith(MAGIC):
        raise ValueError(f"{path} is not a call log of this format")
    calls: list[Call] = []
    at = len(MAGIC)
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(payload) < length:
            break
        at += _FRAME.size + length
        if zlib.crc32(payload) != checksum:
            raise ValueError(f"{path} is damaged at call {len(calls)}")
        frame = msgspec.msgpack.decode(payload)
        if set(frame) == {LEFT_OUT}:
            number = frame[LEFT_OUT]
            calls[number] = replace(calls[number], left_out=True)
        else:
            calls.append(_call(frame))
    return calls


def _described(call: Call) -> dict[str, Any]:
    described = {f.name: getattr(call, f.name) for f in fields(Call)}
    for name, dtype in _ARRAYS.items():
        described[name] = np.ascontiguousarray(described[name], dtype).tobytes()
    return described


def _call(described: dict[str, Any]) -> Call:
    arrays = {name: np.frombuffer(described[name], dtype) for name, dtype in _ARRAYS.items()}
    kinds = {"kind": CallKind(described["kind"]), "status": CallStatus(described["status"])}
    return Call(**{**described, **arrays, **kinds})
