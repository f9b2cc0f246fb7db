"""Two real engines behind the router, 300 conversations under way: whatever dies or hangs, none is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlframe.cluster.connect import connect
from rlframe.cluster.demand import PartDemand
from rlframe.cluster.placement import place
from rlframe.config.schema import ClusterConfig, ModelConfig
from rlframe.interfaces import RolloutRequest
from rlframe.invariants import check_trajectory
from rlframe.launch.model_files import prepare
from rlframe.types import Status, Trajectory, WeightManifest
from rlframe.weights import build_manifest
from rollout.engine.control import Control
from rollout.engine.pool import EnginePool
from rollout.modes.white_box import Limits
from rollout.service import RolloutPool
from rollout.worker_spec import WorkerSpec
from tests.rollout.test_rollout_service import QWEN3, Source, requests
from tests.tiny_engine import engine_spec

ATTEMPTS = 300
AFTERWARDS = 48
HUNG_AFTER_S = 10.0
MENDED_S = 240.0
TOLERANCE = 1e-4


@dataclass
class Setting:
    """A service over two engines, and what it said."""

    engines: EnginePool
    model: Path
    vocab_size: int
    pool: Any = None
    events: list[str] = field(default_factory=list)
    mended: threading.Event = field(default_factory=threading.Event)

    def said(self, text: str) -> None:
        self.events.append(text)
        if "was started again" in text:
            self.mended.set()

    def expect(self) -> None:
        self.events.clear()
        self.mended.clear()

    def collect(self, count: int) -> list[Trajectory]:
        found: list[Trajectory] = []
        while len(found) < count:
            found += self.pool.collect(timeout_s=30.0)
        return found


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    tmp_path = tmp_path_factory.mktemp("two")
    part = PartDemand("engine", count=2, cpus=1.0, gpus=0.0)
    model = prepare(
        ModelConfig(tokenizer="build", hf_config=QWEN3), tmp_path / "m", source=Source()
    )
    directory = Path(model.directory)
    with (
        connect(ClusterConfig(), [part], env_name="") as cluster,
        place([part], placement="colocated") as options,
    ):
        engines = EnginePool(
            [engine_spec(directory, tmp_path, index=i, random_weights=True) for i in range(2)],
            scheduling=options["engine"],
            router=True,
            router_arguments={},
            one_host=cluster.one_host,
            partial=False,
            sync_timeout_s=60.0,
            max_restarts=3,
            hung_after_s=HUNG_AFTER_S,
        )
        made = Setting(engines, directory, model.vocab_size)
        worker = WorkerSpec(
            make_source=Source,
            tokenizer_directory=str(directory),
            vocab_size=model.vocab_size,
            sampling={"temperature": 1.0, "max_new_tokens": 64, "ignore_eos": True},
            limits=Limits(max_turns=4, attempt_timeout_s=240.0, infra_retries=2),
            max_context_tokens=256,
            request_timeout_s=120.0,
            max_concurrency=ATTEMPTS // 2,
        )
        made.pool = RolloutPool(engines, worker, workers=2, on_event=made.said)
        made.pool.begin_start()
        made.pool.wait_started(lambda text: None)
        yield made
        made.pool.close()


def published(setting: Setting, directory: Path, version: int) -> WeightManifest:
    """Random weights of their own for each version, the configuration beside them."""
    torch.manual_seed(version)
    config = AutoConfig.from_pretrained(setting.model, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    shutil.copy(setting.model / "config.json", directory)
    return build_manifest(str(directory), version=version)


def largest_gap(trajectories: list[Trajectory], manifest: WeightManifest) -> float:
    """Between the engines' logprobs and those of transformers, over all actions."""
    model = AutoModelForCausalLM.from_pretrained(manifest.directory, dtype=torch.float32)
    gaps = []
    for trace in [t for trajectory in trajectories for t in trajectory.traces]:
        ids = torch.tensor(trace.token_ids, dtype=torch.long)
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        expected = logprobs[torch.arange(len(ids) - 1), ids[1:]].numpy()
        mask = trace.loss_mask[1:]
        gaps.append(np.abs(expected - trace.rollout_logprobs[1:])[mask].max())
    return float(max(gaps))


def assert_whole(
    found: list[Trajectory], asked: list[RolloutRequest], manifest: WeightManifest
) -> None:
    """Every attempt once, none failed, all by these weights."""
    assert Counter(t.id for t in found) == Counter(r.id for r in asked)
    for trajectory in found:
        assert trajectory.status is Status.COMPLETED, trajectory.info
        check_trajectory(trajectory)
        versions = trajectory.traces[0].versions
        assert set(versions[trajectory.traces[0].loss_mask]) == {manifest.version}
    assert largest_gap(found, manifest) < TOLERANCE


def served_version(setting: Setting, url: str) -> str:
    keys = setting.engines._keys
    return Control(url, api_key=keys.api, admin_key=keys.admin, timeout_s=60.0).weight_version()


def under_way(setting: Setting, manifest: WeightManifest, prefix: str) -> list[RolloutRequest]:
    """Many conversations, on both engines."""
    setting.expect()
    setting.pool.sync(manifest)
    asked = requests(ATTEMPTS, prefix=prefix)
    setting.pool.submit(asked)
    return asked


def assert_both_serve(setting: Setting, manifest: WeightManifest, prefix: str) -> None:
    """Both at the router, at this version, and at work."""
    urls = [engine.info.url for engine in setting.engines._engines]
    assert setting.engines._router._listed() == dict.fromkeys(urls, True)
    assert {served_version(setting, url) for url in urls} == {str(manifest.version)}
    asked = requests(AFTERWARDS, prefix=prefix)
    setting.pool.submit(asked)
    assert_whole(setting.collect(AFTERWARDS), asked, manifest)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("two engines")
def test_an_engine_is_killed(setting: Setting, tmp_path: Path) -> None:
    first = published(setting, tmp_path / "v1", 1)
    asked = under_way(setting, first, "a")
    found = setting.collect(1)
    workers = setting.engines._router._call("GET", "/workers").json()["workers"]
    assert all(worker["load"] > 0 for worker in workers), "both should be at work"
    before = setting.engines.processes()
    left = psutil.Process(before["engine-0"]).children(recursive=True)
    os.kill(before["engine-0"], signal.SIGKILL)
    found += setting.collect(ATTEMPTS - len(found))
    assert_whole(found, asked, first)

    assert setting.mended.wait(MENDED_S), "the engine did not come back"
    assert setting.events == ["engine 0 had died and was started again"]
    after = setting.engines.processes()
    assert after["engine-0"] != before["engine-0"]
    assert {k: v for k, v in after.items() if k != "engine-0"} == {
        k: v for k, v in before.items() if k != "engine-0"
    }
    assert not psutil.wait_procs(left, timeout=20)[1], "the dead server left processes"
    assert_both_serve(setting, first, "b")
    second = published(setting, tmp_path / "v2", 2)
    assert setting.pool.sync(second)["engines_replaced"] == 0
    assert_both_serve(setting, second, "c")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("two engines")
def test_a_hung_scheduler_is_found_though_its_server_answers(
    setting: Setting, tmp_path: Path
) -> None:
    manifest = published(setting, tmp_path / "v3", 3)
    asked = under_way(setting, manifest, "d")
    found = setting.collect(1)
    server = psutil.Process(setting.engines.processes()["engine-1"])
    scheduler = next(p for p in server.children() if "scheduler" in " ".join(p.cmdline()))
    scheduler.send_signal(signal.SIGSTOP)
    found += setting.collect(ATTEMPTS - len(found))
    assert_whole(found, asked, manifest)
    assert setting.mended.wait(MENDED_S), "the engine did not come back"
    assert len(setting.events) == 1
    still = re.fullmatch(
        r"engine 1 stood still for (\d+) s and was started again", setting.events[0]
    )
    assert still is not None
    assert int(still[1]) <= HUNG_AFTER_S
    assert_both_serve(setting, manifest, "e")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("two engines")
def test_a_dead_router_comes_back_at_its_address(setting: Setting, tmp_path: Path) -> None:
    manifest = published(setting, tmp_path / "v4", 4)
    asked = under_way(setting, manifest, "f")
    found = setting.collect(1)
    os.kill(setting.engines.processes()["router"], signal.SIGKILL)
    found += setting.collect(ATTEMPTS - len(found))
    assert_whole(found, asked, manifest)
    assert setting.mended.wait(MENDED_S)
    assert setting.events == ["sglang-router had died and was started again"]
    assert_both_serve(setting, manifest, "g")
