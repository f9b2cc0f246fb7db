"""What sharing one indexer over four layers costs in loss and saves in time.

    python -m examples.indexshare_quality.run [--seed 2]

Trains two tiny GLMs on the Python standard library's sources (`config.yaml`): one with an indexer in every
layer, one with an indexer in every fourth, whose target is the mean of the layers that it serves. Then takes the
first one's indexers out of three layers in four, without training and after a short distillation with
either target, and measures the forward pass of both schedules at growing length.
Writes docs/results/example_indexshare_quality.json and .png.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import RESULTS, Round, interleaved, ratio, write_result
from examples.indexshare_quality.bolt_on import bolt_on
from examples.indexshare_quality.plot import plot
from examples.stdlib_text.corpus import Corpus, even_windows, load_corpus
from examples.stdlib_text.pretrain import held_out_loss, one_process, pretrain, shard_of, start
from rlframe.config.schema import IndexerConfig, PolicyRoleConfig

CONFIG = Path(__file__).with_name("config.yaml")
Settings = Mapping[str, Any]
Curve = list[tuple[int, float]]
"""(steps, held-out loss)."""
TARGETS = {"every_layer": "own", "shared": "served"}


@dataclass(frozen=True)
class Experiment:
    settings: Settings
    corpus: Corpus
    directory: Path

    def hf_config(self, schedule: str) -> dict[str, Any]:
        letters = self.settings["schedules"][schedule]
        types = ["full" if letter == "F" else "shared" for letter in letters]
        model = dict(self.settings["model"])
        return {**model, "vocab_size": self.corpus.vocab_size, "indexer_types": types}

    def role(self, stage: str, mode: str, target: str) -> PolicyRoleConfig:
        given = self.settings[stage]
        return PolicyRoleConfig(
            lr=given["lr"],
            lr_warmup_steps=given["warmup"],
            lr_decay="cosine",
            indexer=IndexerConfig(mode, target, given["coefficient"]),
        )

    def checkpoint(self, name: str) -> str:
        return str(self.directory / name)


def main() -> None:
    began = time.monotonic()
    settings = yaml.safe_load(CONFIG.read_text())
    parser = argparse.ArgumentParser(description="IndexShare: quality and time.")
    parser.add_argument("--seed", type=int, default=settings["seed"])
    seed = settings["seed"] = parser.parse_args().seed
    name = "example_indexshare_quality" + (f"_seed_{seed}" if seed > 1 else "")
    with tempfile.TemporaryDirectory() as directory, one_process(seed=settings["seed"]):
        corpus = load_corpus(settings["vocab_size"])
        experiment = Experiment(settings, corpus, Path(directory))
        curves = {name: train(experiment, name) for name in TARGETS}
        bolt_on(
            experiment.checkpoint("every_layer"),
            experiment.checkpoint("bolted_on"),
            experiment.hf_config("shared"),
        )
        losses = {name: curve[-1][1] for name, curve in curves.items()}
        losses["bolted_on"] = loss_of(experiment, "bolted_on")
        for target in ("own", "served"):
            losses[f"bolted_on_distilled_{target}"] = distil(experiment, target)
        times = forward_times(experiment)
    rows = [
        {
            "model": name,
            "held_out_loss": round(loss, 4),
            "gap": round(loss - losses["every_layer"], 4),
        }
        for name, loss in losses.items()
    ]
    note = f"{round(time.process_time())} CPU s, {round(time.monotonic() - began)} s in all; loss in nats a token, gap to every_layer."
    write_result(name, [*rows, *times], note=note)
    plot(curves, losses, times, RESULTS / f"{name}.png")
    for row in (*rows, *times):
        print(row)


def train(experiment: Experiment, schedule: str) -> Curve:
    """From random weights to `checkpoint(schedule)`."""
    given, every = experiment.settings["training"], experiment.settings["held_out"]["every"]
    training = start(
        experiment.hf_config(schedule),
        config=experiment.role("training", "sparse", TARGETS[schedule]),
        steps=given["steps"],
        seed=experiment.settings["seed"],
    )
    curve: Curve = []
    for first in range(0, given["steps"], every):
        pretrain(
            training,
            experiment.corpus.training,
            steps=min(every, given["steps"] - first),
            sequences=given["sequences"],
            length=given["length"],
            seed=experiment.settings["seed"],
            first_step=first,
            report_every=every,
            label=f"{schedule} ",
        )
        curve.append((first + every, held_out_loss(training, held_out(experiment))))
        print(f"  {schedule} held-out loss {curve[-1][1]:.4f}", flush=True)
    training.export_hf(experiment.checkpoint(schedule))
    return curve


def distil(experiment: Experiment, target: str) -> float:
    """The bolted-on model's indexers learn `target`, nothing else does; its held-out loss after that."""
    given = experiment.settings["distillation"]
    name = f"distilled_{target}"
    training = start(
        experiment.hf_config("shared"),
        config=experiment.role("distillation", "dense_warmup", target),
        steps=given["steps"],
        path=experiment.checkpoint("bolted_on"),
        seed=experiment.settings["seed"],
    )
    history = pretrain(
        training,
        experiment.corpus.training,
        steps=given["steps"],
        sequences=given["sequences"],
        length=given["length"],
        seed=experiment.settings["seed"] + 1,
        label=f"{name} ",
    )
    print(f"  divergence {history[0]['indexer_kl']:.4f} -> {history[-1]['indexer_kl']:.4f}")
    training.export_hf(experiment.checkpoint(name))
    return loss_of(experiment, name)


def loss_of(experiment: Experiment, name: str) -> float:
    """Of a checkpoint with the shared schedule, attention sparse."""
    training = start(
        experiment.hf_config("shared"),
        config=PolicyRoleConfig(),
        steps=1,
        path=experiment.checkpoint(name),
    )
    loss = held_out_loss(training, held_out(experiment))
    print(f"  {name} held-out loss {loss:.4f}", flush=True)
    return loss


def held_out(experiment: Experiment) -> list[Any]:
    given = experiment.settings["held_out"]
    return even_windows(experiment.corpus.held_out, count=given["windows"], length=given["length"])


def forward_times(experiment: Experiment) -> list[dict[str, Any]]:
    """Forward passes over one held-out window of each length, both schedules in turn."""
    given = experiment.settings["timing"]
    models = {
        name: start(
            experiment.hf_config(name),
            config=PolicyRoleConfig(),
            steps=1,
            path=experiment.checkpoint(name),
        )
        for name in TARGETS
    }
    rows = []
    for length in given["lengths"]:
        shard = shard_of([experiment.corpus.held_out[:length]])

        def side(name: str, shard: Any = shard) -> Round:
            began, cpu_began = time.perf_counter(), time.process_time()
            models[name].logprobs(shard)
            tokens = len(shard.columns["token_ids"])
            return Round(time.perf_counter() - began, time.process_time() - cpu_began, tokens)

        sides = {name: (lambda name=name: side(name)) for name in models}
        measured = interleaved(sides, rounds=given["rounds"])
        cpu = {name: min(r.cpu_seconds for r in rounds) for name, rounds in measured.items()}
        rows.append(
            {
                "tokens": length,
                **{f"{name}_cpu_s": round(seconds, 4) for name, seconds in cpu.items()},
                "speedup": round(ratio(measured["shared"], measured["every_layer"]), 3),
                "cpu_speedup": round(cpu["every_layer"] / cpu["shared"], 3),
            }
        )
    return rows


if __name__ == "__main__":
    main()
