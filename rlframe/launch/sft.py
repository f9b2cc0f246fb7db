"""An SFT run: demonstrations to rows, loop, export."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing

import numpy as np

from rlframe import batch
from rlframe.config.schema import SftConfig
from rlframe.errors import UserError
from rlframe.launch.job import Job
from rlframe.launch.parts import policy_of
from rlframe.launch.report import report
from rlframe.launch.saver import RoleSaver
from rlframe.sft import SftLoop
from rlframe.types import NO_VERSION, Demonstration, Trace, TrainRow
from rollout.renderer import Renderer
from trainer.objective import SftObjective

HELD_OUT_SHARE = 16
"""One of so many demonstrations is held out, to see overfitting."""


def run(job: Job) -> int:
    """Returns the exit code."""
    algorithm = job.config.algorithm
    assert isinstance(algorithm, SftConfig)
    checkpoint = job.checkpoints.latest()
    first_step = checkpoint.step if checkpoint else 0
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(job.metrics(after_step=first_step)))
        policy = policy_of(job, SftObjective())
        stack.callback(policy.close)
        policy.begin_start()
        rows, held_out = _rows(job, algorithm)
        job.view.say(f"{len(rows)} demonstrations, {len(held_out)} held out")
        policy.wait_started(job.view.say)
        if checkpoint is not None:
            policy.load(checkpoint.role("policy")).result()
        every = job.config.trainer.checkpoint_every
        saver = RoleSaver("policy", policy, job.checkpoints, every)
        done = SftLoop(
            policy=policy,
            rows=rows,
            held_out=held_out,
            metrics=metrics,
            watcher=saver,
            batch_conversations=algorithm.batch_conversations,
            max_tokens_per_micro_batch=job.config.trainer.max_tokens_per_micro_batch,
            eval_every=job.config.logging.eval_every,
            stop_below_loss=algorithm.stop_below_loss,
            seed=job.config.seed,
            share_prefixes=job.config.trainer.share_prefixes,
        ).run(first_step=first_step, steps=job.config.steps)
        saver.save(done)
        job.view.phase("export")
        policy.export_hf(str(job.directory.hf)).result()
        return report(job, metrics)


def _rows(job: Job, algorithm: SftConfig) -> tuple[Sequence[TrainRow], Sequence[TrainRow]]:
    """Rows to learn from, and rows held out. UserError for a demonstration that is too long."""
    return split(rows_of(job, job.source.demonstrations(algorithm.demonstrations)))


def rows_of(job: Job, shown: Sequence[Demonstration]) -> list[TrainRow]:
    """One row a demonstration. UserError for one that is too long."""
    renderer = Renderer(str(job.model.directory), template_args=job.config.rollout.template_args)
    traces = []
    for index, demonstration in enumerate(shown):
        ids, mask = renderer.demonstration(demonstration)
        if len(ids) > job.config.rollout.max_context_tokens:
            raise UserError(
                f"demonstration {index} ({demonstration.domain}) has {len(ids)} tokens, above "
                f"rollout.max_context_tokens={job.config.rollout.max_context_tokens}"
            )
        zeros = np.zeros(len(ids), np.float32)
        versions = np.full(len(ids), NO_VERSION, np.int32)
        traces.append(Trace(ids, mask, rollout_logprobs=zeros, versions=versions))
    return batch.bare_rows(traces)


def split(rows: Sequence[TrainRow]) -> tuple[Sequence[TrainRow], Sequence[TrainRow]]:
    """Rows to learn from, and one in `HELD_OUT_SHARE` held out where there are enough."""
    every = HELD_OUT_SHARE if len(rows) >= 2 * HELD_OUT_SHARE else len(rows) + 1
    held_out = rows[every - 1 :: every]
    return [row for i, row in enumerate(rows) if (i + 1) % every], held_out
