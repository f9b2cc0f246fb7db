"""The trajectories that runs have stored, as a data set: an index in memory, the rest read when it is asked for.

with StoredTrajectories(["runs/smoke_0"], until_version=-1, max_trace_tokens=8192) as stored:
    training, held_out = stored.split(held_out_share=0.1)
    trajectories = stored.load(training[:128])
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rlframe.errors import UserError
from rlframe.run_directory import RunDirectory
from rlframe.store import TrajectoryStore
from rlframe.types import Status, Trajectory

KEY = "algorithm.source_runs"
_INDEX = """
SELECT t.id, t.task_id, t.status, t.actions, t.oldest_version, t.reward IS NOT NULL,
       (SELECT max(length(token_ids)) / 4 FROM traces WHERE trajectory_id = t.id)
FROM trajectories t ORDER BY t.rowid"""


@dataclass(frozen=True, slots=True)
class _Entry:
    run: int
    id: str
    task_id: str
    tokens: int
    """Of its longest trace."""


class StoredTrajectories:
    """Those that may train: completed or truncated, with actions. `left_out` counts the others, by reason."""

    def __init__(self, runs: Sequence[str], *, until_version: int, max_trace_tokens: int) -> None:
        """`until_version`: see `ValueConfig`. Raises UserError where there is nothing to learn from, saying
        why."""
        if not runs:
            raise UserError(
                f"{KEY} is empty: name runs that have trajectories, {KEY}=[runs/smoke_0]"
            )
        self._stack = ExitStack()
        self._stores: list[TrajectoryStore] = []
        self._entries: list[_Entry] = []
        self.left_out: Counter[str] = Counter()
        try:
            for run in runs:
                self._add(run, until_version, max_trace_tokens)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> StoredTrajectories:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def longest(self) -> int:
        """Tokens of the longest trace."""
        return max(entry.tokens for entry in self._entries)

    def load(self, indices: Sequence[int]) -> list[Trajectory]:
        found = []
        for index in indices:
            entry = self._entries[index]
            trajectory = self._stores[entry.run].get(entry.id)
            assert trajectory is not None, f"'{entry.id}' has gone from the store"
            found.append(trajectory)
        return found

    def split(self, *, held_out_share: float) -> tuple[list[int], list[int]]:
        """Indices to learn from, and held-out ones: by a hash of the task, so that all attempts at a task are
        on one side, in every run alike. Raises UserError where a side that is wanted stays empty."""
        held_out = [_place(entry.task_id) < held_out_share for entry in self._entries]
        sides = ([i for i, out in enumerate(held_out) if out is side] for side in (False, True))
        training, tested = sides
        if not training or (held_out_share > 0 and not tested):
            tasks = len({entry.task_id for entry in self._entries})
            raise UserError(
                f"algorithm.held_out_share={held_out_share:g} leaves {len(training)} trajectories to learn from "
                f"and {len(tested)} held out: {KEY} has {len(self)} trajectories of {tasks} tasks"
            )
        return training, tested

    def _add(self, run: str, until_version: int, max_trace_tokens: int) -> None:
        path = RunDirectory(run).trajectories
        if not path.parent.is_dir():
            raise UserError(f"{KEY}: there is no run directory '{run}'.{_neighbours(Path(run))}")
        if not path.is_file():
            raise UserError(
                f"{KEY}: '{run}' has no trajectories.sqlite: it is no PPO run, or has not begun"
            )
        store = self._stack.enter_context(closing(TrajectoryStore(path, read_only=True)))
        self._stores.append(store)
        rows = store.query(_INDEX)
        if not rows:
            raise UserError(f"{KEY}: '{run}' has stored no trajectory yet")
        reasons: Counter[str] = Counter()
        before = len(self)
        for row in rows:
            reason = _refusal(row, until_version, max_trace_tokens)
            if reason:
                reasons[reason] += 1
            else:
                number = len(self._stores) - 1
                self._entries.append(_Entry(number, str(row[0]), str(row[1]), _whole(row[6])))
        if len(self) == before:
            said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            raise UserError(
                f"{KEY}: none of the {len(rows)} trajectories of '{run}' trains: {said}"
            )
        self.left_out.update(reasons)


def _refusal(row: tuple[object, ...], until_version: int, max_trace_tokens: int) -> str:
    status, actions, oldest, has_reward, tokens = Status(str(row[2])), *map(_whole, row[3:])
    if not status.is_trainable:
        return f"ended as {status.value}"
    if not actions:
        return "without an action"
    if not has_reward:
        return "with a reward that is no number"
    if 0 <= until_version < oldest:
        return f"of weights after algorithm.until_version={until_version}"
    if tokens > max_trace_tokens:
        return f"with a trace of more than the {max_trace_tokens} tokens of a micro-batch"
    return ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _place(task_id: str) -> float:
    """A number from 0 to 1, of the task alone."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:7], "big") / 2.0**56


def _neighbours(path: Path) -> str:
    """Runs beside it that have trajectories."""
    found = sorted(p.parent for p in path.parent.glob("*/trajectories.sqlite"))
    return f" Beside it: {', '.join(map(str, found[:5]))}" if found else ""
