"""What the rollout side costs: tokens per second of the whole path over a bare loop on the same engine.

    python benchmarks/rollout_overhead.py [--rounds 9] [--router]

Ours: requests through the service, a Ray worker, the environment, rendering and bridging, the capture
and the invariants, to trajectories in the driver. The bare loop: one event loop that posts token ids
and appends what comes back, over the same kind of connection (an aiohttp client would cost it more
than all the rest). Both ask the engine for the same: logprobs too, every turn exactly `TURN_TOKENS`
long; no prompt comes twice. With --router our side goes through sglang-router and the bare loop still
to the engine itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Round, interleaved, ratio, row, write_result
from rlframe.cluster.connect import connect
from rlframe.cluster.demand import PartDemand
from rlframe.cluster.placement import place
from rlframe.config.schema import ClusterConfig, ModelConfig
from rlframe.interfaces import RolloutRequest, StepResult
from rlframe.launch.model_files import ModelFiles, prepare
from rlframe.types import Demonstration, Message, Task
from rollout.engine.http_pool import HttpPool, header_lines
from rollout.engine.pool import Endpoint, EnginePool
from rollout.engine.server import EngineSpec
from rollout.modes.white_box import Limits
from rollout.renderer import Renderer
from rollout.service import RolloutPool
from rollout.worker_spec import WorkerSpec

TURN_TOKENS = 64
CONTEXT_TOKENS = 1024
REQUEST_TIMEOUT_S = 120.0
GOAL = 0.92
FEEDBACK: Message = {
    "role": "user",
    "content": "That is not it. Look at the numbers again, please.",
}
TINY_QWEN3 = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT_TOKENS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """So many conversations at once, of so many turns."""

    name: str
    conversations: int
    turns: int

    @property
    def tokens(self) -> int:
        return self.conversations * self.turns * TURN_TOKENS


SHAPES = (Shape("32 conversations x 4 turns", 32, 4), Shape("64 single turns", 64, 1))


class Numbers:
    """Questions that are never the same twice; every attempt goes on for `task.data["turns"]` turns."""

    def task(self, name: str, turns: int) -> Task:
        rng = random.Random(name)
        listed = " ".join(str(rng.randrange(10, 99)) for _ in range(16))
        question: Message = {"role": "user", "content": f"Which of these is the odd one?\n{listed}"}
        return Task(name, "numbers", (question,), {"turns": turns})

    def train_task(self, index: int) -> Task:
        return self.task(f"train/{index}", 1)

    def held_out_tasks(self) -> Sequence[Task]:
        return [self.task("held_out/0", 1)]

    def make(self, task: Task) -> Talk:
        return Talk(task)

    def demonstrations(self, count: int) -> Sequence[Demonstration]:
        answer: Message = {"role": "assistant", "content": "17"}
        tasks = [self.train_task(i) for i in range(count)]
        return [Demonstration((*t.messages, answer, FEEDBACK, answer)) for t in tasks]


class Talk:
    """Says no until the last turn."""

    def __init__(self, task: Task) -> None:
        self._task, self._left = task, int(task.data["turns"])

    async def start(self) -> Sequence[Message]:
        return self._task.messages

    async def step(self, text: str) -> StepResult:
        self._left -= 1
        reward = float(text.count("7")) / (1 + len(text))
        return StepResult(
            done=not self._left, reward=reward, messages=(FEEDBACK,) if self._left else ()
        )

    async def close(self) -> None:
        pass


class Bare:
    """The loop that is compared with: token ids in, token ids out, nothing kept."""

    def __init__(self, endpoint: Endpoint, sampling: Mapping[str, Any]) -> None:
        self._pool = HttpPool(endpoint.url)
        self._headers = header_lines({**endpoint.headers, "Content-Type": "application/json"})
        self._sampling = dict(sampling)
        self._loop = uvloop.new_event_loop()  # as Ray's actors have

    def run(self, prompts: Sequence[list[int]], bridge: list[int], turns: int) -> int:
        """Returns how many tokens were sampled."""

        async def together() -> list[int]:
            return await asyncio.gather(*(self._talk(list(p), bridge, turns) for p in prompts))

        return sum(self._loop.run_until_complete(together()))

    async def _talk(self, ids: list[int], bridge: list[int], turns: int) -> int:
        sampled = 0
        for turn in range(turns):
            ids += bridge if turn else []
            body = {"input_ids": ids, "sampling_params": self._sampling, "return_logprob": True}
            _, payload = await self._pool.post(
                "/generate", self._headers, orjson.dumps(body), timeout_s=REQUEST_TIMEOUT_S
            )
            answer = orjson.loads(payload)
            ids += answer["output_ids"]
            sampled += len(answer["output_ids"])
        return sampled

    def close(self) -> None:
        self._pool.close()
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Bench:
    """Both sides, started."""

    service: RolloutPool
    bare: Bare
    renderer: Renderer
    worker_pid: int

    def ours(self, shape: Shape) -> Round:
        tasks = _tasks(shape)

        def run() -> int:
            requests = [RolloutRequest(id=task.id, task=task) for task in tasks]
            self.service.submit(requests)
            actions, missing = 0, len(requests)
            while missing:
                finished = self.service.collect(timeout_s=10.0)
                missing -= len(finished)
                actions += sum(t.actions for t in finished)
            return actions

        return _timed(run, [os.getpid(), self.worker_pid], shape.tokens)

    def theirs(self, shape: Shape) -> Round:
        prompts = [self.renderer.prompt(task.messages) for task in _tasks(shape)]
        bridge = self.renderer.bridge([FEEDBACK], last_id=None)
        return _timed(
            lambda: self.bare.run(prompts, bridge, shape.turns), [os.getpid()], shape.tokens
        )


def _tasks(shape: Shape) -> list[Task]:
    """Others at every call, or the second side would find the first one's prefixes cached."""
    return [
        Numbers().task(f"{time.time_ns()}/{k}", shape.turns) for k in range(shape.conversations)
    ]


def _timed(run: Callable[[], int], pids: Sequence[int], expected: int) -> Round:
    cpu, began = _cpu_seconds(pids), time.perf_counter()
    tokens = run()
    seconds = time.perf_counter() - began
    if tokens != expected:
        raise RuntimeError(f"{tokens} tokens instead of {expected}")
    return Round(seconds, _cpu_seconds(pids) - cpu, tokens)


def _cpu_seconds(pids: Sequence[int]) -> float:
    """All threads' time on a CPU, to the nanosecond (Linux); a round takes a few clock ticks only."""
    files = (f for pid in pids for f in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(f.read_text().split()[0]) for f in files) / 1e9


@contextmanager
def started(*, router: bool) -> Iterator[Bench]:
    """One engine with random weights, the service over it, and the bare loop beside it."""
    part = PartDemand("engine", count=1, cpus=1.0, gpus=0.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        connect(ClusterConfig(), [part], env_name="") as cluster,
        place([part], placement="colocated") as options,
    ):
        model = prepare(
            ModelConfig(tokenizer="build", hf_config=dict(TINY_QWEN3)),
            Path(folder) / "model",
            source=Numbers(),
        )
        engines = EnginePool(
            [_engine_spec(model, folder)],
            scheduling=options["engine"],
            router=router,
            router_arguments={},
            one_host=cluster.one_host,
            partial=False,
            sync_timeout_s=60.0,
            max_restarts=0,
            hung_after_s=10.0,
        )
        sampling = {"temperature": 1.0, "max_new_tokens": TURN_TOKENS, "ignore_eos": True}
        service = RolloutPool(engines, _worker_spec(model, sampling))
        try:
            service.begin_start()
            service.wait_started(print)
            renderer = Renderer(str(model.directory))
            engine_info = engines._engines[0].info
            assert engine_info is not None
            direct = Endpoint(engine_info.url, engines.endpoint().headers)
            bare = Bare(direct, sampling)
            yield Bench(service, bare, renderer, _worker_pid())
            bare.close()
        finally:
            service.close()


def _engine_spec(model: ModelFiles, folder: str) -> EngineSpec:
    return EngineSpec(
        index=0,
        model_directory=str(model.directory),
        random_weights=True,
        dtype="float32",
        device="cpu",
        arguments={},
        seed=0,
        num_threads=1,
        log_directory=folder,
        start_timeout_s=300.0,
        control_timeout_s=60.0,
    )


def _worker_spec(model: ModelFiles, sampling: Mapping[str, Any]) -> WorkerSpec:
    return WorkerSpec(
        make_source=Numbers,
        tokenizer_directory=str(model.directory),
        vocab_size=model.vocab_size,
        sampling=sampling,
        limits=Limits(
            max_turns=8,
            attempt_timeout_s=300.0,
            infra_retries=0,
        ),
        max_context_tokens=CONTEXT_TOKENS,
        request_timeout_s=REQUEST_TIMEOUT_S,
        max_concurrency=256,
    )


def _worker_pid() -> int:
    for process in psutil.Process().children(recursive=True):
        if "RolloutWorker" in " ".join(process.cmdline()):
            return process.pid
    raise RuntimeError("the rollout worker was not found")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--router", action="store_true", help="our side through sglang-router")
    arguments = parser.parse_args()
    rows = []
    with started(router=arguments.router) as bench:
        for shape in SHAPES:
            print(shape.name)
            sides = {
                "rlframe": partial(bench.ours, shape),
                "bare loop": partial(bench.theirs, shape),
            }
            rounds = interleaved(sides, rounds=arguments.rounds, warm_up=2)
            share = ratio(rounds["rlframe"], rounds["bare loop"])
            print(f"  ratio {share:.3f}, goal {GOAL} {'' if share >= GOAL else 'MISSED'}")
            for name, measured in rounds.items():
                turns = shape.conversations * shape.turns
                per_turn = statistics.median(r.cpu_seconds for r in measured) / turns
                more = {"cpu_ms_per_turn": round(per_turn * 1e3, 3)}
                if name == "rlframe":
                    more |= {"ratio": round(share, 4), "goal": GOAL}
                rows.append(row(name, measured, workload=shape.name, unit="tokens/s", **more))
    suffix = "_router" if arguments.router else ""
    write_result(
        f"rollout_overhead{suffix}",
        rows,
        note=f"Qwen3 2 layers x 64, random weights, float32; {TURN_TOKENS} tokens a turn; "
        "cpu_seconds are the worker's and driver's, without the engine",
    )
    return int(any(r["ratio"] < r["goal"] for r in rows if "ratio" in r))


if __name__ == "__main__":
    sys.exit(main())
