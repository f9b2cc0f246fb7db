"""Plain language modelling of the corpus with a trainer's own rank: `Training`, in this process, alone.

    with one_rank(hf_config, config=PolicyRoleConfig(lr=3e-3), steps=500) as training:
        losses = pretrain(training, corpus.training, steps=500, sequences=4, length=512, seed=1)
        print(held_out_loss(training, even_windows(corpus.held_out, count=64, length=512)))
        training.export_hf(directory)

Loss on all tokens but each window's first. What the framework adds (Ray, the driver) is not needed here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from examples.stdlib_text.corpus import Ids, windows
from rlframe.config.schema import LayoutConfig, PolicyRoleConfig
from trainer.megatron.parallel import destroy_parallel, init_parallel
from trainer.megatron.training import Training
from trainer.objective import SftObjective
from trainer.ranks.shard import RowShard
from trainer.ranks.spec import ModelSource, RankSpec


@contextmanager
def one_rank(
    hf_config: Mapping[str, Any],
    *,
    config: PolicyRoleConfig,
    steps: int,
    path: str = "",
    seed: int = 1,
) -> Iterator[Training]:
    """`start` within `one_process`."""
    with one_process(seed=seed):
        yield start(hf_config, config=config, steps=steps, path=path, seed=seed)


@contextmanager
def one_process(*, seed: int = 1) -> Iterator[None]:
    """This process is a role's only rank, on the CPU with one thread."""
    torch.set_num_threads(1)
    init_parallel(
        layout=LayoutConfig(),
        rank=0,
        world_size=1,
        init_method=f"tcp://127.0.0.1:{_free_port()}",
        device="cpu",
        timeout_s=60,
        seed=seed,
    )
    try:
        yield
    finally:
        destroy_parallel()


def start(
    hf_config: Mapping[str, Any],
    *,
    config: PolicyRoleConfig,
    steps: int,
    path: str = "",
    seed: int = 1,
) -> Training:
    """A policy from the checkpoint at `path`, or of random weights of `seed`; several may stand together.

    `steps`: of the learning rate's schedule.
    """
    spec = RankSpec(
        role="policy",
        rank=0,
        config=config,
        model=ModelSource(hf_config=hf_config, path=path, dtype="float32", seed=seed),
        objective=SftObjective(),
        total_steps=steps,
        device="cpu",
        num_threads=1,
        collective_timeout_s=60.0,
    )
    return Training(spec, "cpu")


def pretrain(
    training: Training,
    ids: Ids,
    *,
    steps: int,
    sequences: int,
    length: int,
    seed: int,
    first_step: int = 0,
    report_every: int = 50,
    label: str = "",
) -> list[dict[str, float]]:
    """`steps` optimizer steps on `sequences` random windows each; the statistics of every step.

    `first_step`: how many were done before, where training goes on.
    """
    history = []
    began = time.monotonic()
    for step in range(first_step, first_step + steps):
        rows = windows(ids, count=sequences, length=length, seed=seed * 1_000_003 + step)
        shard = shard_of(rows)
        statistics = training.update(
            shard, step=step, actions=int(shard.columns["loss_mask"].sum())
        )
        assert statistics is not None  # one rank answers itself
        history.append(statistics)
        if (step + 1) % report_every == 0:
            recent = [s["loss"] for s in history[-report_every:]]
            speed = len(history) * sequences * length / (time.monotonic() - began)
            print(
                f"  {label}{step + 1:6}  loss {np.mean(recent):.4f}  {speed:7.0f} tok/s",
                flush=True,
            )
    return history


def held_out_loss(training: Training, rows: Sequence[Ids], *, at_once: int = 4) -> float:
    """Mean negative log-likelihood of every token but each row's first, in nats."""
    total, tokens = 0.0, 0
    for first in range(0, len(rows), at_once):
        shard = shard_of(rows[first : first + at_once])
        logprobs = training.logprobs(shard)
        assert logprobs is not None
        total -= float(logprobs.sum(dtype=np.float64))
        tokens += int(shard.columns["loss_mask"].sum())
    return total / tokens


def shard_of(rows: Sequence[Ids]) -> RowShard:
    """One micro-batch; every token trains but each row's first."""
    masks = [np.arange(len(row)) > 0 for row in rows]
    return RowShard(
        lengths=np.array([len(row) for row in rows], np.int32),
        rows_per_micro_batch=(len(rows),),
        columns={"token_ids": np.concatenate(rows), "loss_mask": np.concatenate(masks)},
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
