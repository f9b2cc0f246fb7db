"""`rlframe eval compare A B`: is B better than A, on the same tasks under the same settings?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlframe.errors import UserError
from rlframe.evaluation.paired import Paired, paired
from rlframe.evaluation.pins import differences, without
from rlframe.evaluation.record import read_result

ALL = "all"


@dataclass(frozen=True, slots=True)
class Row:
    """One suite, one domain (`suite/domain`), or all tasks."""

    name: str
    mean_a: float
    mean_b: float
    paired: Paired


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A."""

    names: tuple[str, str]
    rows: list[Row]
    unpaired: int
    """Tasks whose attempts count on one side only."""
    differing: list[str]
    """Pinned settings that differ, where that was allowed."""

    @property
    def whole(self) -> Row:
        """Over all tasks: the last row of several suites, the first of one."""
        return self.rows[-1] if self.rows[-1].name == ALL else self.rows[0]

    def described(self) -> dict[str, Any]:
        return {
            "a": self.names[0],
            "b": self.names[1],
            "unpaired_tasks": self.unpaired,
            "differing": self.differing,
            "rows": [
                {
                    "suite": row.name,
                    "mean_a": row.mean_a,
                    "mean_b": row.mean_b,
                    **asdict(row.paired),
                }
                for row in self.rows
            ],
        }


def compare(a: str | Path, b: str | Path, *, despite: Sequence[str] = ()) -> Comparison:
    """Of two results. `despite`: pinned keys (or what stands before a dot) that may differ.

    UserError where pinned settings differ otherwise, naming them, and where no task is in both.
    """
    result_a, result_b = read_result(a), read_result(b)
    found = differences(result_a["pinned"], result_b["pinned"])
    refused = without(found, despite)
    if refused:
        keys = sorted({difference.key for difference in refused})
        raise UserError(
            "these two were not measured under the same settings (A and B):\n  "
            + "\n  ".join(map(str, refused))
            + f"\nIf that is what you want to compare: --despite {','.join(keys)}"
        )
    tasks_a, tasks_b = _by_task(result_a), _by_task(result_b)
    both = sorted(tasks_a.keys() & tasks_b.keys())
    if not both:
        raise UserError(f"no task has attempts that count in both {a} and {b}")
    named = (_name(a, result_a), _name(b, result_b))
    groups: dict[str, list[str]] = {}
    for task in both:
        for group in (
            tasks_a[task]["suite"],
            f"{tasks_a[task]['suite']}/{tasks_a[task]['domain']}",
            ALL,
        ):
            groups.setdefault(group, []).append(task)
    suites = [name for name in groups if name != ALL and "/" not in name]
    order: list[str] = []
    for suite in suites:
        domains = sorted(g for g in groups if g.startswith(f"{suite}/"))
        order += [suite, *(domains if len(domains) > 1 else ())]
    wanted = [*order, ALL] if len(suites) > 1 else order
    return Comparison(
        names=named,
        rows=[_row(name, groups[name], tasks_a, tasks_b) for name in wanted],
        unpaired=len(tasks_a.keys() ^ tasks_b.keys()),
        differing=[str(difference) for difference in found],
    )


def _row(
    name: str,
    tasks: Sequence[str],
    tasks_a: Mapping[str, Mapping[str, Any]],
    tasks_b: Mapping[str, Mapping[str, Any]],
) -> Row:
    means_a = [_mean(tasks_a[task]["scores"]) for task in tasks]
    means_b = [_mean(tasks_b[task]["scores"]) for task in tasks]
    return Row(name, _mean(means_a), _mean(means_b), paired(means_a, means_b))


def _by_task(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Tasks with an attempt that counts."""
    return {row["task"]: row for row in result["tasks"] if row["scores"]}


def _name(path: str | Path, result: Mapping[str, Any]) -> str:
    weights = result["weights"]
    return f"{path}: {weights['path']} ({weights['checksum'][:12]})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
