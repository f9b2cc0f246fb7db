"""The four rows of GLM-5.2's MTP ablation on tiny models, three seeds.

python examples/mtp_acceptance/run.py                 # on held-out files: docs/results/mtp_acceptance.json
python examples/mtp_acceptance/run.py --validation    # on text kept from training: for choosing settings
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.harness import RESULTS, write_result
from examples.mtp_acceptance.one_seed import SeedResult, run_seed
from examples.mtp_acceptance.settings import ROWS, Settings, load_settings
from examples.stdlib_text.corpus import Ids, load_corpus

NAME = "mtp_acceptance"
VALIDATION_TOKENS = 300_000
"""The end of the training text, which no model is trained on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--validation", action="store_true", help="measure on validation text")
    parser.add_argument("--models", type=Path, help="directory where trained models stay")
    options = parser.parse_args()
    settings, began = load_settings(), time.monotonic()
    corpus = load_corpus(settings.vocab_size)
    training, validation = (
        corpus.training[:-VALIDATION_TOKENS],
        corpus.training[-VALIDATION_TOKENS:],
    )
    text = validation if options.validation else corpus.held_out
    with tempfile.TemporaryDirectory() as passing:
        work = options.models or Path(passing)
        work.mkdir(parents=True, exist_ok=True)
        results = run_seeds(settings, training, text, work=work)
    rows = rows_of(results)
    note = summary(settings, results, rows, seconds=time.monotonic() - began)
    for row in rows:
        print(f"{row['method']:20} {row['acceptance_length']:.3f}  {row['seeds']}")
    print(note)
    if not options.validation:
        write_result(NAME, rows, note=note)
        plot(rows, RESULTS / f"{NAME}.png")
    return 0


def run_seeds(settings: Settings, training: Ids, text: Ids, *, work: Path) -> list[SeedResult]:
    """Each seed in a process of its own, as many at once as there are cores."""
    workers = min(len(settings.seeds), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [
            pool.submit(run_seed, settings, training, text, seed=seed, work=work)
            for seed in settings.seeds
        ]
        return [future.result() for future in futures]


def rows_of(results: Sequence[SeedResult]) -> list[dict[str, Any]]:
    rows = []
    for row in ROWS:
        found = [result.acceptances[row.method] for result in results]
        lengths = [round(acceptance.length, 3) for acceptance in found]
        rates = zip(*(acceptance.rates for acceptance in found), strict=True)
        rows.append(
            {
                "method": row.method,
                "acceptance_length": round(mean(lengths), 3),
                "seeds": lengths,
                "without_bonus": round(mean(lengths) - 1.0, 3),
                "accepted_at_step": [round(mean(step), 3) for step in rates],
                "standard_error": round(mean(a.standard_error for a in found), 3),
                "teacher_forced": round(
                    mean(result.teacher_forced[row.method] for result in results), 3
                ),
            }
        )
    return rows


def summary(
    settings: Settings,
    results: Sequence[SeedResult],
    rows: Sequence[dict[str, Any]],
    *,
    seconds: float,
) -> str:
    columns = list(zip(*(row["seeds"] for row in rows), strict=True))
    rising = sum(all(a < b for a, b in pairwise(c)) for c in columns)
    gain = rows[-1]["acceptance_length"] / rows[0]["acceptance_length"] - 1
    losses = ", ".join(f"{result.held_out_loss:.3f}" for result in results)
    return (
        f"Tokens a round of {settings.drafts} drafts, bonus token counted, decoded at temperature 1. Gain of the "
        f"last row over the first: {gain:.1%}. Every row above the one before in {rising} of {len(columns)} "
        f"seeds. Loss of the trunks on the same text: {losses} nats a token. {seconds / 60:.1f} minutes."
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, steps) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    colours = ["#9aa5b1", "#5b8db8", "#2f6690", "#16425b"]
    for i, (row, about) in enumerate(zip(rows, ROWS, strict=True)):
        bars.bar(i, row["acceptance_length"], color=colours[i], width=0.65)
        bars.plot([i] * len(row["seeds"]), row["seeds"], "k.", markersize=5)
        bars.text(i, 0.15, f"{row['acceptance_length']:.2f}", ha="center", color="white")
        rates = row["accepted_at_step"]
        steps.plot(range(1, len(rates) + 1), rates, "o-", color=colours[i], label=about.label)
    bars.set_xticks(range(len(rows)), [about.label.replace(", ", ",\n") for about in ROWS])
    bars.tick_params(axis="x", labelsize=8)
    bars.set_ylabel("tokens a round (mean; dots: seeds)")
    steps.set_xlabel("draft step")
    steps.set_ylabel("accepted, given all before were")
    steps.legend(fontsize=8)
    for axes in (bars, steps):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
