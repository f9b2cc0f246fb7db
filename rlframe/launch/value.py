"""A run of value pretraining: stored trajectories, the critic's ranks, loop, export. No engines, no policy."""

from __future__ import annotations

from contextlib import ExitStack, closing

from rlframe.config.check_value import max_trace_tokens
from rlframe.config.schema import ValueConfig
from rlframe.launch.job import Job
from rlframe.launch.parts import critic_of, critic_source
from rlframe.launch.report import report
from rlframe.launch.saver import RoleSaver
from rlframe.model_costs.row_costs import row_costs
from rlframe.stored_trajectories import StoredTrajectories
from rlframe.value_pretraining import ValueLoop


def run(job: Job) -> int:
    """Returns the exit code. `hf/` has the weights whose held-out error was the lowest."""
    config, algorithm = job.config, job.config.algorithm
    assert isinstance(algorithm, ValueConfig)
    checkpoint = job.checkpoints.latest()
    first_step = checkpoint.step if checkpoint else 0
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(job.metrics(after_step=first_step)))
        critic = critic_of(job, algorithm)
        stack.callback(critic.close)
        critic.begin_start()
        stored = stack.enter_context(
            StoredTrajectories(
                algorithm.source_runs,
                until_version=algorithm.until_version,
                max_trace_tokens=max_trace_tokens(config),
            )
        )
        training, held_out = stored.split(held_out_share=algorithm.held_out_share)
        held_out = held_out[: algorithm.held_out_trajectories]
        job.view.say(_said(stored, len(training), len(held_out)))
        critic.wait_started(job.view.say)
        if checkpoint is not None:
            critic.load(checkpoint.role("critic")).result()
        saver = RoleSaver("critic", critic, job.checkpoints, config.trainer.checkpoint_every)
        hf_config = critic_source(job, algorithm).hf_config
        done = ValueLoop(
            critic=critic,
            stored=stored,
            training=training,
            held_out=held_out,
            metrics=metrics,
            watcher=saver,
            keep_best=lambda: critic.export_hf(str(job.directory.hf)).result(),
            on_progress=job.view.progress,
            algorithm=algorithm,
            max_tokens_per_micro_batch=config.trainer.max_tokens_per_micro_batch,
            row_costs=row_costs(hf_config, longest=stored.longest),
            eval_every=config.logging.eval_every,
            seed=config.seed,
            share_prefixes=config.trainer.share_prefixes,
        ).run(first_step=first_step, steps=config.steps)
        saver.save(done)
        if not held_out:
            critic.export_hf(str(job.directory.hf)).result()
        return report(job, metrics)


def _said(stored: StoredTrajectories, training: int, held_out: int) -> str:
    text = f"{training} trajectories to learn from, {held_out} held out"
    reasons = [f"{count} {reason}" for reason, count in stored.left_out.most_common()]
    return text + (f"; left out: {', '.join(reasons)}" if reasons else "")
