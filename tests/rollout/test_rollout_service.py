"""The service on real Ray and a real SGLang server: nothing lost, nothing twice, workers may die."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rlframe.cluster.connect import connect
from rlframe.cluster.demand import PartDemand
from rlframe.cluster.placement import place
from rlframe.config.schema import ClusterConfig, ModelConfig
from rlframe.errors import UserError
from rlframe.interfaces import RolloutRequest, StepResult
from rlframe.invariants import check_trajectory
from rlframe.launch.model_files import prepare
from rlframe.types import Demonstration, Message, Status, Task, Trajectory
from rollout.engine.pool import EnginePool
from rollout.engine.server import EngineSpec
from rollout.modes.white_box import Limits
from rollout.service import RolloutPool
from rollout.worker_spec import WorkerSpec

QWEN3 = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
}


class TwoTurns:
    """Every attempt has two turns; the second brings 1. In the domain `stuck` the first never ends."""

    def __init__(self, task: Task) -> None:
        self.task, self.turns = task, 0

    async def start(self) -> Sequence[Message]:
        return self.task.messages

    async def step(self, text: str) -> StepResult:
        self.turns += 1
        if self.task.domain == "broken":
            raise ValueError("no such room")
        if self.task.domain == "stuck":
            Path(self.task.data["directory"], f"{self.task.id}-began").touch()
            await asyncio.Event().wait()
        again: Message = {"role": "user", "content": "Once more."}
        last = self.turns == 2
        return StepResult(done=last, reward=float(last), messages=() if last else (again,))

    async def close(self) -> None:
        if self.task.domain == "stuck":
            Path(self.task.data["directory"], f"{self.task.id}-closed").touch()


class Source:
    def train_task(self, index: int) -> Task:
        return Task(f"t{index}", "d", ({"role": "user", "content": f"Number {index}?"},))

    def held_out_tasks(self) -> Sequence[Task]:
        return [self.train_task(0)]

    def make(self, task: Task) -> TwoTurns:
        return TwoTurns(task)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        raise UserError("none")


def no_source() -> Source:
    raise UserError("env.args.path: only on the driver's node")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EnginePool, WorkerSpec]]:
    directory = tmp_path_factory.mktemp("service")
    part = PartDemand("engine", count=1, cpus=1.0, gpus=0.0)
    model = prepare(
        ModelConfig(tokenizer="build", hf_config=QWEN3), directory / "m", source=Source()
    )
    spec = EngineSpec(
        index=0,
        model_directory=str(model.directory),
        random_weights=True,
        dtype="float32",
        device="cpu",
        arguments={"max_total_tokens": 32768},
        seed=0,
        num_threads=1,
        log_directory=str(directory),
        start_timeout_s=300.0,
        control_timeout_s=60.0,
    )
    worker = WorkerSpec(
        make_source=Source,
        tokenizer_directory=str(model.directory),
        vocab_size=model.vocab_size,
        sampling={"temperature": 1.0, "max_new_tokens": 24},
        limits=Limits(max_turns=4, attempt_timeout_s=120.0, infra_retries=1),
        max_context_tokens=256,
        request_timeout_s=60.0,
        max_concurrency=16,
    )
    with (
        connect(ClusterConfig(), [part], env_name="") as cluster,
        place([part], placement="colocated") as options,
    ):
        pool = EnginePool(
            [spec],
            scheduling=options["engine"],
            router=False,
            router_arguments={},
            one_host=cluster.one_host,
            partial=False,
            sync_timeout_s=60.0,
            max_restarts=0,
            hung_after_s=10.0,
        )
        pool.begin_start()
        pool.wait_started(lambda text: None)
        yield pool, worker
        pool.close()


class Running:
    """A service over engines that outlive it."""

    def __init__(self, engines: EnginePool, spec: WorkerSpec, *, workers: int) -> None:
        self.events: list[str] = []
        shared: Any = Shared(engines)
        self.pool = RolloutPool(shared, spec, workers=workers, on_event=self.events.append)
        self.pool.wait_started(lambda text: None)

    def collect(self, count: int) -> list[Trajectory]:
        found: list[Trajectory] = []
        while len(found) < count:
            found += self.pool.collect(timeout_s=30.0)
        return found


class Shared:
    """An engine pool that is up already and stays up."""

    def __init__(self, engines: EnginePool) -> None:
        self.check, self.endpoint = engines.check, engines.endpoint

    def wait_started(self, progress: object) -> None:
        pass

    def close(self) -> None:
        pass


def requests(count: int, *, prefix: str, domain: str = "d") -> list[RolloutRequest]:
    question: Message = {"role": "user", "content": "What is it?"}
    return [
        RolloutRequest(f"{prefix}/{n}", Task(f"t{n}", domain, (question,))) for n in range(count)
    ]


def test_every_attempt_comes_back_once_over_two_workers(
    engines: tuple[EnginePool, WorkerSpec],
) -> None:
    running = Running(*engines, workers=2)
    try:
        asked = requests(40, prefix="a")
        running.pool.submit(asked)
        running.pool.submit(asked)  # an id that is under way is not started again
        found = running.collect(40)
        assert sorted(t.id for t in found) == sorted(r.id for r in asked)
        assert running.pool.collect(timeout_s=0.2) == []
        for trajectory in found:
            assert trajectory.status is Status.COMPLETED
            assert trajectory.reward == 1.0
            assert trajectory.info["turns"] == 2
            check_trajectory(trajectory)
        running.pool.submit(requests(3, prefix="b", domain="broken"))
        for trajectory in running.collect(3):
            assert trajectory.status is Status.FAILED
            assert "ValueError: no such room" in trajectory.info["error"]
    finally:
        running.pool.close()


def children_named(text: str) -> list[int]:
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with suppress(psutil.Error):  # another one may end just now
            if text in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def test_attempts_of_a_killed_worker_are_made_by_its_successor(
    engines: tuple[EnginePool, WorkerSpec],
) -> None:
    running = Running(*engines, workers=1)
    try:
        running.pool.submit(requests(60, prefix="c"))
        found = running.collect(1)
        (pid,) = children_named("RolloutWorker")
        os.kill(pid, signal.SIGKILL)
        found += running.collect(60 - len(found))
        assert sorted(t.id for t in found) == sorted(f"c/{n}" for n in range(60))
        assert len(running.events) == 1
        assert "worker 0 had died" in running.events[0]
    finally:
        running.pool.close()


def stuck_requests(count: int, directory: Path, *, prefix: str) -> list[RolloutRequest]:
    return [
        replace(r, task=replace(r.task, data={"directory": str(directory)}))
        for r in requests(count, prefix=prefix, domain="stuck")
    ]


def wait_until_begun(count: int, directory: Path, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while len(list(directory.glob("*-began"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cancelled_attempts_are_aborted_and_closed(
    engines: tuple[EnginePool, WorkerSpec], tmp_path: Path
) -> None:
    running = Running(*engines, workers=2)
    try:
        stuck = stuck_requests(6, tmp_path, prefix="stuck")
        running.pool.submit(stuck)
        wait_until_begun(6, tmp_path)
        running.pool.cancel([r.id for r in stuck[:4]] + ["nobody/knows"])
        found = running.collect(4)
        assert sorted(t.id for t in found) == [r.id for r in stuck[:4]]
        assert {t.status for t in found} == {Status.ABORTED}
        assert not any(t.status.is_trainable or t.actions for t in found)
        assert {p.name for p in tmp_path.glob("*-closed")} == {f"t{n}-closed" for n in range(4)}

        # Many at once, before, while and after they call the engine, which stays free for others.
        many = requests(60, prefix="many")
        running.pool.submit(many)
        running.pool.cancel([r.id for r in many])
        found = running.collect(60)
        assert sorted(t.id for t in found) == sorted(r.id for r in many)
        assert {t.status for t in found} <= {Status.ABORTED, Status.COMPLETED}
        running.pool.submit(requests(8, prefix="after"))
        assert {t.status for t in running.collect(8)} == {Status.COMPLETED}
    finally:
        running.pool.close()
    assert len(list(tmp_path.glob("*-closed"))) == 6, "the end of the service closes the rest"


def test_what_a_worker_can_not_start_with_is_the_users_to_mend(
    engines: tuple[EnginePool, WorkerSpec], tmp_path: Path
) -> None:
    pool, spec = engines
    with pytest.raises(UserError, match="only on the driver's node"):
        Running(pool, replace(spec, make_source=no_source), workers=1)
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        Running(pool, replace(spec, tokenizer_directory=str(tmp_path)), workers=1)
    assert ray.is_initialized()
