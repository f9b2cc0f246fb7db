"""A machine that is busy with other work brings up no Ray node in the half minute that Ray gives it: again, a few times."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from rlframe.errors import RunError

STARTS = 4
_TOO_SLOW = "timed out during startup"
"""Of Ray's own message (`ray._private.node`), an exception of no class of its own."""


def start_patiently(start: Callable[[], object], *, starts: int = STARTS) -> None:
    """Calls `start` until it is through. What a start that took too long has left running is ended first. RunError
    after `starts` of them; any other failure is raised as it is."""
    before = set(psutil.Process().children(recursive=True))
    for _ in range(starts):
        try:
            start()
        except Exception as error:
            if _TOO_SLOW not in str(error):
                raise
            _end(set(psutil.Process().children(recursive=True)) - before)
        else:
            return
    raise RunError(
        f"Ray's node did not come up in half a minute, {starts} times: this machine is too busy (load "
        f"{psutil.getloadavg()[0]:.0f} on {psutil.cpu_count()} CPUs). Start again when there is less to do, or attach "
        "to a cluster that runs (cluster.address)"
    )


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
