"""The sum of a process tree's memory, looked at again and again: for machines without cgroups for us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psutil

INTERVAL_S = 0.05


async def watch_memory(pid: int, limit_bytes: int, exceeded: Callable[[], Awaitable[None]]) -> None:
    """Calls `exceeded` each time that the sum is above the limit. Runs until it is cancelled, or until
    the tree's root has gone.

    What is allocated and freed between two looks isn't seen; one process alone is held by RLIMIT_DATA.
    """
    while psutil.pid_exists(pid):
        if await asyncio.to_thread(tree_memory, pid) > limit_bytes:
            await exceeded()
        await asyncio.sleep(INTERVAL_S)


def tree_memory(pid: int) -> int:
    """Resident bytes that are no shared library of a process and everything below it."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        total += max(memory.rss - memory.shared, 0)
    return total
