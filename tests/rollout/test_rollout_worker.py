"""A worker's places: in all, and by domain. The mode is a scripted one; real ones are in the service's tests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from rlframe.interfaces import RolloutRequest
from rlframe.types import Status, Task, Trajectory
from rollout.modes.white_box import Limits
from rollout.worker import RolloutWorker
from rollout.worker_spec import WorkerSpec


class Gate:
    """Attempts that last until they are let go."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.open = asyncio.Event()

    async def run(self, request: RolloutRequest) -> Trajectory:
        domain = request.task.domain
        self.inside[domain] += 1
        self.most[domain] = max(self.most[domain], self.inside[domain])
        await self.open.wait()
        self.inside[domain] -= 1
        return Trajectory(request.id, request.task.id, domain, Status.FAILED, traces=())


def worker_with(gate: Gate, **places: Any) -> RolloutWorker:
    spec = WorkerSpec(
        make_source=lambda: None,  # type: ignore[arg-type,return-value]
        tokenizer_directory="",
        vocab_size=1,
        sampling={},
        limits=Limits(max_turns=1, attempt_timeout_s=1.0, infra_retries=0),
        max_context_tokens=1,
        request_timeout_s=1.0,
        **places,
    )
    worker = RolloutWorker(spec, "http://nobody", {})
    worker._mode = gate
    return worker


def attempts(domain: str, count: int) -> list[RolloutRequest]:
    return [RolloutRequest(f"{domain}-{n}", Task(f"t{n}", domain, ())) for n in range(count)]


async def collected(worker: RolloutWorker, count: int) -> list[Trajectory]:
    found: list[Trajectory] = []
    while len(found) < count:
        found += await worker.collect(5.0)
    return found


async def test_a_domain_has_its_own_limit_and_keeps_nobody_else_waiting() -> None:
    gate = Gate()
    limits = {"terminal": 2, "maths/hard": 1}
    worker = worker_with(gate, max_concurrency=10, domain_concurrency=limits)
    await worker.submit(attempts("terminal/shell", 20))
    await worker.submit(attempts("maths/hard", 5))
    await worker.submit(attempts("maths/easy", 6))
    for _ in range(5):
        await asyncio.sleep(0)
    assert gate.inside == {"terminal/shell": 2, "maths/hard": 1, "maths/easy": 6}
    gate.open.set()
    assert len(await collected(worker, 31)) == 31
    assert gate.most["terminal/shell"] == 2
    assert gate.most["maths/hard"] == 1


async def test_a_cancelled_attempt_gives_its_place_back() -> None:
    gate = Gate()
    worker = worker_with(gate, max_concurrency=10, domain_concurrency={"a": 1})
    await worker.submit(attempts("a", 3))
    await asyncio.sleep(0)
    await worker.cancel(["a-0", "a-1"])
    gate.open.set()
    found = await collected(worker, 3)
    assert {t.id: t.status for t in found} == {
        "a-0": Status.ABORTED,
        "a-1": Status.ABORTED,
        "a-2": Status.FAILED,
    }


async def test_attempts_that_are_cancelled_before_they_have_begun_come_back_too() -> None:
    """Ray may begin `cancel` in the same turn of the loop as the `submit` before it."""
    worker = worker_with(Gate(), max_concurrency=2)
    submitting = asyncio.ensure_future(worker.submit(attempts("a", 5)))
    cancelling = asyncio.ensure_future(worker.cancel([f"a-{n}" for n in range(5)]))
    await asyncio.gather(submitting, cancelling)
    found = await collected(worker, 5)
    assert {t.status for t in found} == {Status.ABORTED}
    assert sorted(t.id for t in found) == [f"a-{n}" for n in range(5)]
