"""Trained tokens a second of on-policy distillation, end to end: rlframe against TRL's two trainers.

    python benchmarks/opd_training.py tiny          # or small; sets up TRL 1.16's environment on first use

A step is rollout by the student, the teacher's whole distribution at every sampled token, a generalized JSD
(beta 0.5) as the loss and one update, and, for rlframe, the trajectory store and the checked weight sync into
the engine, on real Ray, SGLang and Megatron-core. Every side has the same architecture and batch, random weights,
answers of fixed length, one BLAS thread a process and the machine's cores to itself; rounds go in turn. First, the
divergences of given logits are compared with TRL's own definition.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.end_to_end import overrides
from benchmarks.harness import (
    ROOT,
    PeerProcess,
    Round,
    interleaved,
    median_rate,
    ratio,
    row,
    tree_cpu_seconds,
    write_result,
)
from benchmarks.peers.shapes import SHAPES, Shape
from rlframe.config.compose import load_config
from rlframe.config.schema import RunConfig
from rlframe.launch import ppo
from rlframe.launch.job import settle

TRL_PYTHON = ROOT / ".venv-trl-opd" / "bin" / "python"
TRL = ("trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0", "multiprocess==0.70.19")
PEER = Path(__file__).parent / "peers" / "trl_distillation.py"
BETAS = (0.0, 0.1, 0.5, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    set_up_trl()
    gap = value_gap()
    print(f"largest difference of a divergence from TRL's: {gap:.2e}")
    names = ("distillation", "gkd")
    peers = {name: PeerProcess(str(TRL_PYTHON), PEER, name, given.size, "1") for name in names}
    try:
        with rlframe_steps(SHAPES[given.size]) as ours:
            sides = {"rlframe": ours, **{f"trl_{n}": p.round for n, p in peers.items()}}
            measured = interleaved(sides, rounds=given.rounds, warm_up=1)
    finally:
        for peer in peers.values():
            peer.close()
    rows = [row(name, rounds, unit="tokens/s") for name, rounds in measured.items()]
    ratios = {n: ratio(measured["rlframe"], measured[f"trl_{n}"]) for n in names}
    for name, rounds in measured.items():
        print(f"{name:<16} {median_rate(rounds):10,.0f} trained tokens/s")
    print(", ".join(f"rlframe / trl {n} {value:.2f}" for n, value in ratios.items()))
    rows.append({"side": "ratio", **{f"to_{n}": round(v, 3) for n, v in ratios.items()}})
    rows.append({"side": "value", "largest_difference_from_trl": gap})
    write_result(f"opd_training_{given.size}", rows)
    return 0


def value_gap() -> float:
    """Of mean divergences of the same float32 logits, over betas."""
    import torch

    from trainer.losses.divergences import Divergence, full_divergence

    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(0, 2, (64, 300)).astype(np.float32) for _ in range(2))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "logits.npz"
        np.savez(path, student=student, teacher=teacher, betas=np.array(BETAS))
        said = subprocess.run(
            [str(TRL_PYTHON), str(PEER), "value", str(path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    theirs = json.loads(next(line for line in said.splitlines() if line.startswith('{"peer"')))
    teacher_logits = torch.from_numpy(teacher)
    ours = {
        beta: full_divergence(
            torch.from_numpy(student), lambda part: teacher_logits[part], Divergence("jsd", beta)
        ).mean()
        for beta in BETAS
    }
    return max(abs(float(ours[beta]) - theirs[str(beta)]) for beta in BETAS)


@contextmanager
def rlframe_steps(shape: Shape) -> Iterator[Callable[[], Round]]:
    """A callable that does one step of a real run."""
    with tempfile.TemporaryDirectory() as directory:
        config = distilling(shape, directory)
        with settle(config) as job, ppo.start(job) as running:
            steps = iter(range(10**6))

            def one_step() -> Round:
                step = next(steps)
                began, cpu_began = time.perf_counter(), tree_cpu_seconds()
                running.loop.run(first_step=step, steps=step + 1)
                seconds = time.perf_counter() - began
                line = running.metrics.history[-1]
                tokens = shape.rollouts * shape.new_tokens
                assert line["rollout/actions"] == tokens, line["rollout/actions"]
                assert line["policy/teacher_divergence"] >= 0
                return Round(seconds, tree_cpu_seconds() - cpu_began, tokens)

            yield one_step


def distilling(shape: Shape, directory: str) -> RunConfig:
    """The end-to-end benchmark's, with a teacher of the student's shape on the policy's rank."""
    teacher = Path(directory) / "teacher"
    write_teacher(shape, teacher)
    manifest = Path(directory) / "teachers.yaml"
    listed = [{"name": "teacher", "checkpoint": str(teacher), "domains": ["*"]}]
    manifest.write_text(yaml.safe_dump({"teachers": listed}))
    return load_config(
        [
            *overrides(shape, str(Path(directory) / "run")),
            "algorithm=opd",
            "algorithm.objective=jsd",
            "algorithm.jsd_beta=0.5",
            "algorithm.teachers_on=ranks",
            "algorithm.compare=false",
            f"teachers.manifest={manifest}",
        ]
    )


def write_teacher(shape: Shape, directory: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    Qwen3ForCausalLM(Qwen3Config(**shape.qwen3())).save_pretrained(directory)


def set_up_trl() -> None:
    """TRL 1.16 and what only it needs, in an environment that has our packages below its own."""
    if TRL_PYTHON.exists():
        return
    home = TRL_PYTHON.parents[1]
    print(f"setting up {home.name} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    below = home / "lib" / version / "site-packages" / "below.pth"
    below.write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(TRL_PYTHON), "-m", "pip", "install", "-qq", "--no-deps"]
    subprocess.run([*pip, *TRL], check=True)


if __name__ == "__main__":
    sys.exit(main())
