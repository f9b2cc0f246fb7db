"""Useful tokens a second of the whole PPO step: rlframe against TRL's PPO and a bare-torch floor.

    python benchmarks/end_to_end.py tiny          # or small; sets up TRL's environment on first use

A step is rollout, old logprobs and values, GAE, one update of critic and policy, and, for rlframe, the
trajectory store and the checked weight sync into the engine, on real Ray, SGLang and Megatron-core. Every side
has the same architecture and batch, random weights, answers of fixed length, one BLAS thread a process and
the machine's cores to itself; rounds go in turn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
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

TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"
TRL_LOCK = ROOT / "requirements" / "bench-trl.lock"
TEMPLATE_TOKENS = 8
"""Of a prompt, besides its content: checked at the first step."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    shape = SHAPES[given.size]
    set_up_trl()
    peers = Path(__file__).parent / "peers"
    floor = PeerProcess(sys.executable, peers / "torch_floor.py", given.size, "1")
    trl = PeerProcess(str(TRL_PYTHON), peers / "trl_ppo.py", given.size, "1")
    try:
        with rlframe_steps(shape) as ours:
            sides = {"rlframe": ours, "trl": trl.round, "floor": floor.round}
            measured = interleaved(sides, rounds=given.rounds, warm_up=2)
    finally:
        trl.close()
        floor.close()
    to_trl = ratio(measured["rlframe"], measured["trl"])
    to_floor = ratio(measured["rlframe"], measured["floor"])
    for name, rounds in measured.items():
        print(f"{name:<8} {median_rate(rounds):10,.0f} useful tokens/s")
    print(f"rlframe / trl {to_trl:.2f}   rlframe / bare-torch floor {to_floor:.2f}")
    rows = [row(name, rounds, unit="tokens/s") for name, rounds in measured.items()]
    rows.append({"side": "ratio", "to_trl": round(to_trl, 3), "to_floor": round(to_floor, 3)})
    write_result(f"end_to_end_{given.size}", rows)
    return 0


@contextmanager
def rlframe_steps(shape: Shape) -> Iterator[Callable[[], Round]]:
    """A callable that does one step of a real run."""
    with (
        tempfile.TemporaryDirectory() as directory,
        settle(configuration(shape, directory)) as job,
        ppo.start(job) as running,
    ):
        steps = iter(range(10**6))

        def one_step() -> Round:
            step = next(steps)
            began, cpu_began = time.perf_counter(), tree_cpu_seconds()
            running.loop.run(first_step=step, steps=step + 1)
            seconds = time.perf_counter() - began
            line = running.metrics.history[-1]
            tokens = shape.rollouts * shape.new_tokens
            assert line["rollout/actions"] == tokens, line["rollout/actions"]
            assert line["rollout/tokens"] == shape.rollouts * (shape.prompt + shape.new_tokens)
            return Round(seconds, tree_cpu_seconds() - cpu_began, tokens)

        yield one_step


def configuration(shape: Shape, directory: str) -> RunConfig:
    """One step of everything, nothing beside it: no evaluation, no checkpoint, no view."""
    return load_config(overrides(shape, directory))


def overrides(shape: Shape, directory: str) -> list[str]:
    context = shape.prompt + shape.new_tokens
    fields = [f"model.hf_config.{key}={_shown(value)}" for key, value in shape.qwen3().items()]
    return [
        "model=tiny_qwen3",
        *fields,
        "model.tokenizer_vocab_size=280",
        "env.name=benchmarks.random_prompts:RandomPrompts",
        f"env.args.characters={shape.prompt - TEMPLATE_TOKENS}",
        "logging=quiet",
        "logging.eval_every=0",
        "trainer.checkpoint_every=0",
        f"algorithm.batch_trajectories={shape.rollouts}",
        f"rollout.sampling.max_new_tokens={shape.new_tokens}",
        "rollout.sampling.ignore_eos=true",
        f"rollout.max_context_tokens={context}",
        "rollout.max_turns=1",
        "rollout.router=false",
        f"run_dir={directory}",
        "steps=1000000",
    ]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", "") if isinstance(value, list) else str(value)


def set_up_trl() -> None:
    """TRL in an environment of its own: it wants other versions than we do."""
    if TRL_PYTHON.exists():
        return
    print("setting up .venv-trl ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(TRL_PYTHON.parents[1])], check=True)
    pip = [str(TRL_PYTHON), "-m", "pip", "install", "-qq", "--no-deps"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "-r", str(TRL_LOCK)], check=True)


if __name__ == "__main__":
    sys.exit(main())
