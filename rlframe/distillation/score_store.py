"""What teachers said, kept in the run directory: a resumed or replayed step learns from the same scores.

One SQLite file beside the trajectories, one row a trace. Candidates of more than `MOST_KEPT` tokens a position
are not kept: they would fill the disk, and a resumed run has its teachers up and asks again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlframe.distillation.signals import Taught
from rlframe.types import Trajectory

MOST_KEPT = 128
_SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
    trajectory_id TEXT NOT NULL, position INTEGER NOT NULL, teacher TEXT NOT NULL, error TEXT NOT NULL,
    logprobs BLOB, top_ids BLOB, top_logprobs BLOB, PRIMARY KEY (trajectory_id, position)
)
"""


class ScoreStore:
    """Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(_SCHEMA)

    def put(self, trajectory_id: str, taught: Sequence[Taught]) -> None:
        """All traces of one trajectory, or nothing. Failures are not kept: they are asked about again."""
        if any(scores.error or _is_large(scores) for scores in taught):
            return
        rows = [
            (
                trajectory_id,
                position,
                scores.teacher,
                scores.error,
                _blob(scores.logprobs),
                _blob(scores.top_ids),
                _blob(scores.top_logprobs),
            )
            for position, scores in enumerate(taught)
        ]
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")

    def get(self, trajectory: Trajectory, *, top_k: int) -> list[Taught] | None:
        """One a trace; None where they are not there, or have other than `top_k` candidates."""
        with self._lock:
            rows = self._db.execute(
                "SELECT teacher, error, logprobs, top_ids, top_logprobs FROM scores "
                "WHERE trajectory_id = ? ORDER BY position",
                (trajectory.id,),
            ).fetchall()
        if len(rows) != len(trajectory.traces):
            return None
        found = []
        for trace, (teacher, error, logprobs, ids, top) in zip(
            trajectory.traces, rows, strict=True
        ):
            length = len(trace)
            own = np.frombuffer(logprobs, "<f4") if logprobs is not None else None
            if ids is None:
                found.append(Taught(teacher, own, error=error))
                width = 0
            else:
                top_ids = np.frombuffer(ids, "<i4").reshape(length, -1)
                width = top_ids.shape[1]
                found.append(
                    Taught(
                        teacher, own, top_ids, np.frombuffer(top, "<f4").reshape(length, -1), error
                    )
                )
            if width != top_k:
                return None
        return found

    def counts(self) -> Mapping[str, int]:
        """Traces scored, by teacher."""
        with self._lock:
            rows = self._db.execute(
                "SELECT teacher, count(*) FROM scores GROUP BY teacher"
            ).fetchall()
        return dict(rows)

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _is_large(scores: Taught) -> bool:
    return scores.top_ids is not None and scores.top_ids.shape[1] > MOST_KEPT


def _blob(array: object) -> bytes | None:
    return None if array is None else np.ascontiguousarray(array).tobytes()
