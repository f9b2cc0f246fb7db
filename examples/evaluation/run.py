"""What PPO has taught the smoke model: its warm start and its end, measured and compared.

    make smoke                          # or: rlframe train experiment=sft_tiny; rlframe train experiment=smoke ...
    python -m examples.evaluation.run

Two `rlframe eval eval=smoke` (128 held-out puzzles, 4 attempts each) and one `rlframe eval compare`. A stopped one
goes on where it was. Writes docs/results/evaluation.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, write_result

SHOWN = ("mean", "standard_error", "tasks", "attempts", "infra_failure_rate", "truncation_rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="runs/sft_tiny", help="run, or Hugging Face checkpoint")
    parser.add_argument("--after", default="runs/smoke_0", help="run, or Hugging Face checkpoint")
    given = parser.parse_args()
    directories = {
        "warm_start": measure(given.before, ROOT / "runs/evaluation/warm_start"),
        "after_ppo": measure(given.after, ROOT / "runs/evaluation/after_ppo"),
    }
    rows = [row_of(name, directory) for name, directory in directories.items()]
    compared = ROOT / "runs/evaluation/comparison.json"
    rlframe(
        "eval",
        "compare",
        *map(str, directories.values()),
        "--json",
        str(compared),
        "--plot",
        str(RESULTS / "evaluation.png"),
    )
    rows += [
        {"arm": "after_ppo - warm_start", **row} for row in json.loads(compared.read_text())["rows"]
    ]
    write_result("evaluation", rows)


def measure(checkpoint: str, directory: Path) -> Path:
    rlframe("eval", "eval=smoke", f"model.path={checkpoint}", f"run_dir={directory}")
    return directory


def rlframe(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlframe.cli.main", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def row_of(name: str, directory: Path) -> dict[str, Any]:
    result = json.loads((directory / "eval.json").read_text())
    total = result["total"]
    return {
        "arm": name,
        **{key: total[key] for key in SHOWN},
        "pass_at": {k: v["value"] for k, v in total["pass_at"].items()},
        "pass_hat": {k: v["value"] for k, v in total["pass_hat"].items()},
        "engine_seconds": result["engine_seconds"],
        "prompt_tokens": total["cost"]["prompt_tokens"],
        "sampled_tokens": total["cost"]["sampled_tokens"],
        "pinned_hash": result["pinned_hash"],
        "weights": result["weights"]["checksum"],
    }


if __name__ == "__main__":
    main()
