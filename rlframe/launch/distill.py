"""An on-policy distillation run: what there is to compare with, PPO's loop with teachers, the report."""

from __future__ import annotations

from rlframe.config.schema import OpdConfig
from rlframe.distillation.report import PICTURE, report_of, write_report
from rlframe.launch import ppo
from rlframe.launch.comparison import Comparison, best_by_domain, read_comparison
from rlframe.launch.job import Job
from rlframe.launch.report import report
from rlframe.metrics import COMPARED


def run(job: Job) -> int:
    """Returns the exit code, as PPO's does."""
    with ppo.start(job) as running:
        _compare(job, running)
        running.watcher.evaluate(running.first_step)
        running.loop.run(first_step=running.first_step, steps=job.config.steps)
        running.watcher.finish()
        job.view.phase("export")
        running.policy.export_hf(str(job.directory.hf)).result()
        code = report(job, running.metrics)
        _report(job, running)
        return code


def _compare(job: Job, running: ppo.Running) -> None:
    """Teachers and the average of their weights, in the student's engines; they serve the student again after it."""
    algorithm = job.config.algorithm
    assert isinstance(algorithm, OpdConfig)
    assert running.teachers is not None
    if not algorithm.compare and algorithm.several_teachers != "best":
        return
    manifest = running.teachers.manifest
    comparison = Comparison(
        job.directory.path, manifest, job.source, running.producer, running.rollouts, job.view.say
    )
    student = running.loop.publish(running.first_step)
    with running.metrics.span("compare"):
        compared = comparison.make(student, running.weights_directory)
    running.rollouts.sync(running.loop.publish(running.first_step))
    for number, (name, rewards) in enumerate(compared.items()):
        values = {f"{COMPARED}/{name}/{domain}": value for domain, value in rewards.items()}
        running.metrics.log(number, values, event=COMPARED)
    if algorithm.several_teachers == "best":
        running.teachers.best.update(best_by_domain(manifest, compared))


def _report(job: Job, running: ppo.Running) -> None:
    teachers = running.teachers
    assert teachers is not None
    table = report_of(
        running.metrics.history,
        read_comparison(job.directory.path),
        {
            domain: [t.name for t in teachers.manifest.of_domain(domain)]
            for domain in sorted({task.domain for task in job.source.held_out_tasks()})
        },
        best=teachers.best,
    )
    write_report(table, job.directory.path, title=job.config.name)
    running.metrics.show(
        "distillation", [row.shown() for row in table.rows], job.directory.path / PICTURE
    )
    running.metrics.log(
        job.config.steps,
        {f"report/{r.domain}/{k}": v for r in table.rows for k, v in r.numbers().items()},
        event="report",
    )
