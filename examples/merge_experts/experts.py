"""Twelve experts and the model that they and the student begin with, by SFT in one set of ranks.

    python -m examples.merge_experts.experts [--seed 0] [key=value ...]

The base learns a little of every family; each expert goes on from it with one family alone. All of it is the
framework's own SFT loop on one started policy: loading the base's checkpoint takes the place of twelve starts.
Writes runs/merge_experts/SEED/{base,NAME}/hf and the manifest runs/merge_experts/SEED/teachers.yaml.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.harness import ROOT
from rlframe.config.check import check_config
from rlframe.config.compose import load_config
from rlframe.config.schema import RunConfig
from rlframe.interfaces import RoleTrainer
from rlframe.launch.job import Job, settle
from rlframe.launch.model_files import copy_tokenizer
from rlframe.launch.parts import policy_of
from rlframe.launch.sft import rows_of, split
from rlframe.metrics import Metrics
from rlframe.sft import SftLoop
from rlframe.types import TrainRow
from trainer.objective import SftObjective

BASE_STEPS = 250
"""Enough to answer in form, and sometimes right: a student that begins further off wanders where no teacher
has been. The rest is the experts'."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="of experiment/merge_experts_sft.yaml")
    given = parser.parse_args()
    make_experts(given.seed, given.overrides)


def directory_of(seed: int) -> Path:
    return ROOT / "runs" / "merge_experts" / str(seed)


def make_experts(seed: int, overrides: Sequence[str] = ()) -> Path:
    """The manifest. What is there already is not trained again."""
    home = directory_of(seed)
    manifest = home / "teachers.yaml"
    if manifest.exists():
        return manifest
    config = load_config(
        ["experiment=merge_experts_sft", f"seed={seed}", f"run_dir={home / 'sft'}", *overrides],
        config_dir=str(Path(__file__).parent),
    )
    check_config(config)
    with settle(config) as job:
        policy = policy_of(job, SftObjective())
        try:
            policy.begin_start()
            rows = _rows_by_domain(job)
            policy.wait_started(job.view.say)
            _train_all(_School(job, policy, home), rows)
        finally:
            policy.close()
    teachers = [
        {"name": name, "checkpoint": str(home / name / "hf"), "domains": [name]} for name in rows
    ]
    manifest.write_text(yaml.safe_dump({"teachers": teachers}, sort_keys=False))
    return manifest


def _rows_by_domain(job: Job) -> dict[str, list[TrainRow]]:
    shown = job.source.demonstrations(job.config.algorithm.demonstrations)
    found: dict[str, list[TrainRow]] = {}
    for demonstration, row in zip(shown, rows_of(job, shown), strict=True):
        found.setdefault(demonstration.domain, []).append(row)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _School:
    job: Job
    policy: RoleTrainer
    home: Path

    def train(self, name: str, rows: Sequence[TrainRow], *, steps: int, stop_below: float) -> None:
        """From the weights that the policy has; its checkpoint is in `home/NAME/hf` then. Held-out
        demonstrations are looked at where they may end it early."""
        directory = self.home / name
        directory.mkdir(parents=True, exist_ok=True)
        learnt, held_out = split(rows)
        config: RunConfig = self.job.config
        with closing(Metrics(directory / "metrics.jsonl")) as metrics:
            done = SftLoop(
                policy=self.policy,
                rows=learnt,
                held_out=held_out,
                metrics=metrics,
                watcher=_Nothing(),
                batch_conversations=config.algorithm.batch_conversations,
                max_tokens_per_micro_batch=config.trainer.max_tokens_per_micro_batch,
                eval_every=config.logging.eval_every if stop_below else 0,
                stop_below_loss=stop_below,
                seed=config.seed,
            ).run(first_step=0, steps=steps)
            last = [line for line in metrics.history if "sft/held_out_loss" in line][-1]
        self.policy.export_hf(str(directory / "hf")).result()
        copy_tokenizer(self.job.model.directory, directory / "hf")
        print(f"{name}: {done} steps, held-out loss {last['sft/held_out_loss']:.4f}", flush=True)


class _Nothing:
    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """No checkpoints: an expert takes seconds."""


def _train_all(school: _School, rows: Mapping[str, Sequence[TrainRow]]) -> None:
    everything = [row for group in zip(*rows.values(), strict=False) for row in group]
    school.train("base", everything, steps=BASE_STEPS, stop_below=0.0)
    base = school.home / "base" / "checkpoint"
    if not base.exists():
        school.policy.save(str(base), BASE_STEPS).result()
    algorithm = school.job.config.algorithm
    for name, own in rows.items():
        school.policy.load(str(base)).result()
        school.train(name, own, steps=school.job.config.steps, stop_below=algorithm.stop_below_loss)


if __name__ == "__main__":
    main()
