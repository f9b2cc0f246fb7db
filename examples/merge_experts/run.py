"""Twelve tiny experts, trained from nothing, merged into one student by on-policy distillation.

    python -m examples.merge_experts.run [--seeds 3] [key=value ...]

Each seed: a base and twelve experts by SFT (`experts.py`), then `rlframe distill experiment=merge_experts`. A stopped
study goes on where it was. Writes docs/results/merge_experts.json, one row a domain (held-out reward, mean of the
seeds), and .png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import RESULTS, ROOT, write_result
from examples.merge_experts.experts import directory_of

COLUMNS = {
    "expert": "teacher",
    "merged": "student",
    "weight_average": "weight_average",
    "best_single": "best_single",
}
"""Of a row here, from the run's report."""
COLOURS = {
    "expert": "#8aa9d6",
    "merged": "#d1495b",
    "weight_average": "#edae49",
    "best_single": "#66a182",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of experiment=merge_experts")
    given = parser.parse_args()
    reports, seconds = [], []
    for seed in range(given.seeds):
        report, took_s = one_seed(seed, given.overrides)
        reports.append(report)
        seconds.append(took_s)
    rows = rows_of(reports)
    for row in rows:
        print(row)
    note = "minutes from nothing, by seed: " + ", ".join(f"{s / 60:.1f}" for s in seconds)
    write_result("merge_experts", rows, note=note)
    plot(rows, RESULTS / "merge_experts.png")


def one_seed(seed: int, overrides: Sequence[str]) -> tuple[Mapping[str, Any], float]:
    """The run's report, and how long experts and merge took together."""
    home = directory_of(seed)
    clock = home / "seconds.json"
    done = json.loads(clock.read_text()) if clock.exists() else {}
    for part, command in (
        ("experts", ["-m", "examples.merge_experts.experts", "--seed", str(seed)]),
        (
            "merge",
            [
                "-m",
                "rlframe.cli.main",
                "distill",
                "experiment=merge_experts",
                f"seed={seed}",
                f"run_dir={home / 'merge'}",
                "logging.live=off",
                *overrides,
            ],
        ),
    ):
        if part in done:
            continue
        began_s = time.monotonic()
        home.mkdir(parents=True, exist_ok=True)
        with (home / f"{part}.log").open("w") as log:
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=log, stderr=log)
        done[part] = round(time.monotonic() - began_s, 1)
        clock.write_text(json.dumps(done))
    report: Mapping[str, Any] = json.loads((home / "merge" / "distillation.json").read_text())
    return report, float(sum(done.values()))


def rows_of(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By domain, and all of them together as `mean`."""
    rows = []
    for place, first in enumerate(reports[0]["rows"]):
        each = [report["rows"][place] for report in reports]
        row: dict[str, Any] = {"domain": first["domain"]}
        row |= {name: round(mean(r[key] for r in each), 3) for name, key in COLUMNS.items()}
        row["merged_of_expert"] = round(row["merged"] / row["expert"], 3) if row["expert"] else None
        row["seeds"] = [round(r["student"], 3) for r in each]
        row["kl"] = [round(r["kl"], 4) for r in each if r["kl"] is not None]
        rows.append(row)
    return rows


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    width = 0.85 / len(COLOURS)
    for place, (name, colour) in enumerate(COLOURS.items()):
        at = [index + (place - 1.5) * width for index in range(len(rows))]
        axes.bar(at, [row[name] for row in rows], width, color=colour, label=name.replace("_", " "))
    axes.set_xticks(range(len(rows)), [r["domain"] for r in rows], rotation=30, ha="right")
    axes.set_ylabel("held-out reward")
    figure.legend(
        *axes.get_legend_handles_labels(),
        frameon=False,
        ncols=4,
        fontsize=9,
        loc="outside upper left",
    )
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
