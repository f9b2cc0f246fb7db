"""From a configuration to a finished run: everything is checked first, claimed second, run third."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType

from rlframe.cluster import preflight
from rlframe.config.schema import RunConfig
from rlframe.errors import RunError
from rlframe.launch import distill, ppo, sft, value
from rlframe.launch.job import Job, settle

RUNS = {"ppo": ppo.run, "opd": distill.run, "sft": sft.run, "value": value.run}
TERMINATED = 143
INTERRUPTED = 130


class Terminated(BaseException):
    """SIGTERM arrived (preemption, a scheduler's time limit)."""


def run(config: RunConfig) -> int:
    """Runs to the end; returns the exit code. UserError and RunError are the caller's to show."""
    return run_settled(config, partial(settle, config), RUNS[config.algorithm.name])


def run_settled(
    config: RunConfig,
    settled: Callable[[], AbstractContextManager[Job]],
    work: Callable[[Job], int],
) -> int:
    """`work` between the surroundings' beginning and their orderly end, whatever ends it."""
    preflight.check_machine(config.cluster)
    # Ray 2.60 takes SIGTERM over when it starts, and aborts the process: so once more inside.
    with terminable(), settled() as job, terminable():
        try:
            return work(job)
        except KeyboardInterrupt:
            print(kept(config, "Interrupted"), file=sys.stderr)
            return INTERRUPTED
        except Terminated:
            print(kept(config, "Terminated"), file=sys.stderr)
            return TERMINATED
        except RunError as error:
            raise RunError(f"{error}\n{kept(config, 'Stopped')}") from error


def kept(config: RunConfig, what: str) -> str:
    return (
        f"{what}. Finished trajectories and checkpoints are in {config.run_dir}; "
        "the same command goes on from there (resume=auto)."
    )


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM unwinds the run like Ctrl-C, so that every process is ended in order."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
