"""Run a function of a test file on several gloo ranks, each a process of its own.

    from tests.trainer.spawn import run_ranks

    def losses(rank: int, world_size: int, init_method: str, seed: int) -> list[float]: ...

    def test_losses():
        first, second = run_ranks(losses, 2, seed=7)

A rank is forked from one server process (one a test session) that has imported torch and megatron
once, so a spawn costs tenths of a second. The function is found again by its file and name: it must
stand at the top level of a file. What it returns is pickled; what it raises is raised here, with the
rank's traceback.
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import pickle
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

JOIN_TIMEOUT_S = 120.0


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *,
    timeout_s: float = JOIN_TIMEOUT_S,
    **arguments: Any,
) -> list[Any]:
    """[function(rank, world_size, init_method, **arguments)] of every rank.

    The first rank that raises ends the others. Raises RuntimeError then, and after `timeout_s`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.megatron.platform", "trainer.megatron.training"])
    processes, pipes = [], []
    # They meet in a file: a port that is free now may be another's by the time rank 0 listens.
    meeting = Path(tempfile.mkdtemp(prefix="ranks-"))
    init_method = f"file://{meeting / 'store'}"
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        job = {
            "file": inspect.getfile(function),
            "name": function.__name__,
            "positional": (rank, world_size, init_method),
            "arguments": arguments,
            "pipe": theirs,
        }
        process = context.Process(target=runpy.run_path, args=(__file__, {"JOB": job}, "__rank__"))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        return _collect(pipes, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(meeting)


def _collect(pipes: list[Connection], timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        missing = [p for rank, p in enumerate(pipes) if rank not in results]
        ready = wait(missing, timeout=timeout_s)
        if not ready:
            raise RuntimeError(f"ranks still running after {timeout_s} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            try:
                error, results[rank] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                error = "it died"
            if error:
                raise RuntimeError(f"rank {rank}: {error}")
    return [results[rank] for rank in range(len(pipes))]


def _run_job(job: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        spec = importlib.util.spec_from_file_location("rank_" + Path(job["file"]).stem, job["file"])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        result = getattr(module, job["name"])(*job["positional"], **job["arguments"])
        answer = ("", result)
    except Exception:  # noqa: BLE001 - outside code: the test's own, told to the test with its traceback
        answer = (traceback.format_exc(), None)
    # Plain pickle: a tensor travels by value, and so outlives its rank.
    job["pipe"].send_bytes(pickle.dumps(answer))


if __name__ == "__rank__":
    _run_job(globals()["JOB"])
