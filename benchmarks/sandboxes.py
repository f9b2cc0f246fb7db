"""What a sandbox costs: its start against a plain fork and exec in the same rounds, one command in it, and
many of them alive at once.

    python -m benchmarks.sandboxes [--rounds 20] [--alive 200]

Writes docs/results/sandboxes.json. `start_cpu` is in CPU seconds of everything that a start runs; `ratio`
is the median over rounds of a sandbox's start to a `bash -c true` and to a `python3 -I -S -c pass` next to it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import time
from typing import Any

import psutil

from benchmarks.harness import tree_cpu_seconds, write_result
from envs.sandbox.bwrap import BwrapSandbox, describe, open_bwrap
from envs.sandbox.pool import SandboxPool
from envs.sandbox.spec import SandboxSpec
from rlframe.sandbox.limits import Quotas
from rlframe.sandbox.memory_watch import tree_memory

SPEC = SandboxSpec(quotas=Quotas(memory_bytes=256 << 20, disk_bytes=64 << 20, processes=64))
MIB = 1 << 20
AT_ONCE = 4
PLAIN = {"bash": ["bash", "-c", "true"], "python3": ["/usr/bin/python3", "-I", "-S", "-c", "pass"]}


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


async def starts(rounds: int) -> dict[str, Any]:
    """A start, an exec, an end, and both plain processes, in every round."""
    seconds: dict[str, list[float]] = {
        name: [] for name in ("start", "exec", "close", "cpu", *PLAIN)
    }
    await (await open_bwrap(SPEC)).close()
    for _ in range(rounds):
        for name, command in PLAIN.items():
            seconds[name].append(timed(command))
        began = time.perf_counter()
        sandbox = await open_bwrap(SPEC)
        seconds["start"].append(time.perf_counter() - began)
        seconds["cpu"].append(tree_cpu_seconds(sandbox._process.pid))
        began = time.perf_counter()
        await sandbox.exec(["true"])
        seconds["exec"].append(time.perf_counter() - began)
        began = time.perf_counter()
        await sandbox.close()
        seconds["close"].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        f"ratio_to_{name}": round(
            statistics.median(a / b for a, b in zip(seconds["start"], seconds[name], strict=True)),
            1,
        )
        for name in PLAIN
    }
    return {
        "what": "start",
        "start_ms": round(1e3 * medians["start"], 1),
        "start_ms_best": round(1e3 * min(seconds["start"]), 1),
        "start_cpu_ms": round(1e3 * medians["cpu"], 1),
        "exec_ms": round(1e3 * medians["exec"], 1),
        "close_ms": round(1e3 * medians["close"], 1),
        **{f"{name}_ms": round(1e3 * medians[name], 1) for name in PLAIN},
        **ratios,
        "rounds": rounds,
    }


async def warm(rounds: int) -> dict[str, Any]:
    """Taking one that stands ready."""
    pool = SandboxPool(open_bwrap, warm=1)
    await (await pool.take(SPEC)).close()
    seconds = []
    for _ in range(rounds):
        await pool.settle()
        began = time.perf_counter()
        sandbox = await pool.take(SPEC)
        seconds.append(time.perf_counter() - began)
        await sandbox.close()
    await pool.close()
    return {"what": "warm_take", "take_ms": round(1e3 * statistics.median(seconds), 3)}


async def alive(count: int) -> dict[str, Any]:
    """All at once: each is asked for one command while all the others live."""
    free = psutil.virtual_memory().available
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> BwrapSandbox:
        async with gate:
            return await open_bwrap(SPEC)

    began = time.perf_counter()
    opened = await asyncio.gather(*(one() for _ in range(count)))
    started = time.perf_counter() - began
    began = time.perf_counter()
    answers = await asyncio.gather(*(s.exec(["hostname", "-s"], timeout_s=300) for s in opened))
    asked = time.perf_counter() - began
    used = free - psutil.virtual_memory().available
    own = statistics.median(tree_memory(s._process.pid) for s in opened)
    works = sum(answer.limit == "" for answer in answers)
    began = time.perf_counter()
    await asyncio.gather(*(s.close() for s in opened))
    return {
        "what": "alive",
        "alive": count,
        "answered": works,
        "start_seconds": round(started, 2),
        "one_command_each_seconds": round(asked, 2),
        "close_seconds": round(time.perf_counter() - began, 2),
        "mib_each_private": round(own / MIB, 1),
        "mib_all_by_free_memory": round(used / MIB),
    }


async def measure(rounds: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for row in (starts(rounds), warm(rounds), alive(count)):
        rows.append(await row)
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alive", type=int, default=200)
    given = parser.parse_args()
    rows = asyncio.run(measure(given.rounds, given.alive))
    write_result("sandboxes", rows, note=describe())


if __name__ == "__main__":
    main()
