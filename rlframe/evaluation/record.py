"""The files of an evaluation: what it was begun with, when it was at work, and its result.

pinned.json      the pinned settings, their hash, and the checksum of the weights: written first of all
sessions.jsonl   when engines were up for it, one line a start
eval.json        the result, written at the end
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rlframe.durable_files import write_atomic
from rlframe.errors import UserError
from rlframe.evaluation.pins import differences, digest
from rlframe.weights import checksum, open_directory

PINNED, SESSIONS, RESULT = "pinned.json", "sessions.jsonl", "eval.json"
SHOWN_DIFFERENCES = 12


@dataclass(frozen=True, slots=True)
class Identity:
    """What all attempts of one evaluation share."""

    pinned: Mapping[str, Any]
    weights: Mapping[str, Any]
    """`checksum` of all tensors, `path`, `step` where a run says it."""

    def described(self) -> dict[str, Any]:
        return {
            "pinned_hash": digest(self.pinned),
            "pinned": dict(self.pinned),
            "weights": dict(self.weights),
        }


def weights_of(path: str) -> dict[str, Any]:
    """Of a Hugging Face checkpoint: the checksum does not depend on how tensors are spread over files.

    `step`: of the run that it is the model of, where its summary says so.
    """
    if not path:
        return {"path": "", "checksum": "random"}
    try:
        tensors = open_directory(path)
    except ValueError as error:
        raise UserError(f"model.path: {error}") from None
    whole = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]
        whole.update(f"{name} {tensor.dtype} {tensor.shape} {checksum(tensor.data)}\n".encode())
    found: dict[str, Any] = {
        "path": path,
        "checksum": whole.hexdigest(),
        "tensors": len(tensors),
        "bytes": sum(len(tensor.data) for tensor in tensors.values()),
    }
    summary = Path(path).parent / "summary.json"
    if summary.is_file():
        found["step"] = json.loads(summary.read_text()).get("steps")
    return found


def begin_or_go_on(directory: Path, identity: Identity) -> None:
    """Writes what the evaluation is begun with, or compares with what it was. UserError names the keys
    that differ, and a directory that holds something else."""
    file = directory / PINNED
    if not file.exists():
        if (directory / "trajectories.sqlite").exists() or (directory / "checkpoints").exists():
            raise UserError(
                f"run_dir={directory} holds a run that is no evaluation: give another run_dir or name"
            )
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(identity.described(), indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    changed = differences(before["pinned"], identity.pinned)
    texts = [str(difference) for difference in changed[:SHOWN_DIFFERENCES]]
    if len(changed) > SHOWN_DIFFERENCES:
        texts.append(f"and {len(changed) - SHOWN_DIFFERENCES} more")
    if before["weights"]["checksum"] != identity.weights["checksum"]:
        texts.append(
            f"model.path: other weights ({before['weights']['path']} and {identity.weights['path']})"
        )
    if texts:
        raise UserError(
            f"{directory} was begun with other settings, and its attempts can't be mixed with these "
            "(then and now):\n  "
            + "\n  ".join(texts)
            + "\nGo on with the settings of then, or give "
            "another run_dir or name"
        )


def note_session(directory: Path, unix_s: float) -> None:
    """Engines are up from now on."""
    with (directory / SESSIONS).open("a") as file:
        file.write(json.dumps({"unix_s": unix_s}) + "\n")


def engine_seconds(directory: Path, ended_s: Sequence[float]) -> float:
    """For how long engines were up, over all sessions: each from its start to the last attempt that ended
    before the next. Of a session that was killed nothing else is known."""
    file = directory / SESSIONS
    if not file.exists():
        return 0.0
    starts = [float(json.loads(line)["unix_s"]) for line in file.read_text().splitlines()]
    total = 0.0
    for start, following in zip(starts, [*starts[1:], math.inf], strict=True):
        total += max((end - start for end in ended_s if start <= end < following), default=0.0)
    return total


def write_result(directory: Path, result: Mapping[str, Any]) -> None:
    write_atomic(directory / RESULT, json.dumps(_finite(result), indent=2) + "\n")


def read_result(path: str | Path) -> dict[str, Any]:
    """A directory with an eval.json, or such a file. Numbers that were not finite are None."""
    file = Path(path)
    file = file / RESULT if file.is_dir() else file
    if not file.is_file():
        begun = (file.parent / PINNED).exists()
        hint = ": it is not at its end; the same `rlframe eval` goes on with it" if begun else ""
        raise UserError(f"{path} holds no result of an evaluation ({RESULT}){hint}")
    try:
        result = json.loads(file.read_text())
    except ValueError:
        result = None
    if not isinstance(result, dict) or not {"pinned", "weights", "tasks", "total"} <= result.keys():
        raise UserError(f"{file} is no result of `rlframe eval`")
    return result


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
