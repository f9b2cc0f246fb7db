"""Roles on real Ray actors: results, deaths, refusals, and nothing left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rlframe.config.schema import LayoutConfig, RoleConfig, TrainerConfig
from rlframe.errors import RunError, UserError
from rlframe.types import BatchPlan
from rlframe.weights import verify
from tests.trainer.tiny import TINY
from tests.trainer.tiny_glm import TINY_GLM
from tests.trainer.train_rows import plan_of, rank_spec, train_rows
from trainer.ranks.cpu_memory import KEEP_FREED_MEMORY
from trainer.ranks.role import RankedRole

WHOLE = plan_of(((0, 1, 2, 3, 4),))
HALVES = plan_of(((4, 2), (0,)), ((1, 3), ()))
ONE_CPU = {"num_cpus": 1}
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster of this module's own."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 1024**2,
        runtime_env={"env_vars": {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}},
        namespace="test-role",
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def role(
    kind: str,
    layout: LayoutConfig,
    *,
    path: str = "",
    silent_rank_s: float = 60.0,
    hf_config: dict[str, Any] = TINY,
    backend: str = "megatron",
) -> RankedRole:
    spec = rank_spec(kind, layout=layout, hf_config=hf_config)
    return RankedRole(
        spec.role,
        config=RoleConfig(layout=layout, lr=1e-2, optimizer={"adam_eps": 1e-3}),
        trainer=TrainerConfig(
            backend=backend,
            start_timeout_s=240,
            collective_timeout_s=60,
            silent_rank_s=silent_rank_s,
        ),
        model=dataclasses.replace(spec.model, path=path),
        objective=spec.objective,
        total_steps=10,
        device="cpu",
        scheduling=[ONE_CPU] * layout.world_size,
    )


def started(*roles: RankedRole) -> list[str]:
    told: list[str] = []
    for each in roles:
        each.begin_start()
    for each in roles:
        each.wait_started(told.append)
    return told


def assert_gone(process_ids: list[int]) -> None:
    processes = [psutil.Process(pid) for pid in process_ids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


@pytest.mark.parametrize(
    ("backend", "hf_config", "layout", "plan"),
    [
        ("megatron", TINY, LayoutConfig(data=2), HALVES),
        ("megatron", TINY_GLM, LayoutConfig(context=2, expert=2), WHOLE),
        ("deepspeed", TINY, LayoutConfig(data=2), HALVES),
    ],
    ids=["dense", "glm", "deepspeed"],
)
def test_two_roles_work_at_the_same_time(
    cluster: str,
    tmp_path: Path,
    backend: str,
    hf_config: dict[str, Any],
    layout: LayoutConfig,
    plan: BatchPlan,
) -> None:
    policy = role("policy", layout, hf_config=hf_config, backend=backend)
    critic = role("critic", LayoutConfig(), hf_config=hf_config, backend=backend)
    told = started(policy, critic)
    process_ids = policy.process_ids() + critic.process_ids()
    try:
        assert len(told) == 3
        assert any("policy rank 2/2 is up" in line for line in told)
        for process_id in process_ids:  # the allocator's settings, beside the job's own variables
            variables = psutil.Process(process_id).environ()
            assert KEEP_FREED_MEMORY.items() <= variables.items()
            assert variables["PYTHONPATH"].startswith(ROOT)
        rows = train_rows()
        pending_logprobs = policy.logprobs(rows, plan)
        pending_values = critic.values(rows, WHOLE)
        logprobs, values = pending_logprobs.result(), pending_values.result()
        for row, logprob, value in zip(rows, logprobs, values, strict=True):
            assert logprob.shape == value.shape == row.token_ids.shape
            assert (logprob[row.loss_mask] < 0).all()
            assert not logprob[~row.loss_mask].any()
            assert value[0] == 0
            assert value[1:].all()

        updates = [policy.update(rows, plan, step=0), critic.update(rows, WHOLE, step=0)]
        metrics = [update.result() for update in updates]
        assert all(m["skipped"] == 0 and m["grad_norm"] > 0 for m in metrics)
        learnt = policy.logprobs(rows, plan).result()
        assert not np.array_equal(learnt[1], logprobs[1])

        saves = [policy.save(str(tmp_path / "policy"), 1), critic.save(str(tmp_path / "critic"), 1)]
        assert [save.result() for save in saves] == [None, None]
        policy.update(rows, plan, step=1).result()
        assert policy.load(str(tmp_path / "policy")).result() == 1
        np.testing.assert_array_equal(policy.logprobs(rows, plan).result()[1], learnt[1])

        manifest = policy.export(3, str(tmp_path / "published")).result()
        assert manifest.version == 3
        assert verify(manifest) == []
        policy.export_hf(str(tmp_path / "hf")).result()
        assert (tmp_path / "hf" / "config.json").exists()

        with pytest.raises(ValueError, match="no token"):
            policy.update([rows[2]], plan_of(*([((0,),), ((),)][: layout.data])), step=1)
        with pytest.raises(UserError, match="not of the critic"):
            critic.load(str(tmp_path / "policy")).result()
    finally:
        policy.close()
        critic.close()
    assert_gone(process_ids)
    with pytest.raises(RunError, match="closed"):
        policy.check()


@pytest.mark.parametrize("backend", ["megatron", "deepspeed"])
def test_a_death_ends_the_role(cluster: str, tmp_path: Path, backend: str) -> None:
    """Once while its peer waits for it in a collective, once while it writes a checkpoint."""
    busy = role("policy", LayoutConfig(data=2), backend=backend)
    idle = role("critic", LayoutConfig(), backend=backend)
    started(busy, idle)
    process_ids = busy.process_ids()
    os.kill(process_ids[1], signal.SIGSTOP)
    update = busy.update(train_rows(), HALVES, step=3)
    os.kill(process_ids[1], signal.SIGKILL)
    with pytest.raises(
        RunError, match=r"policy rank 1 of 2 on host .* died while updating \(step 3\)"
    ):
        update.result()
    assert_gone(process_ids)
    with pytest.raises(RunError, match="policy rank 1 of 2"):
        busy.check()
    busy.close()

    idle.check()
    idle.save(str(tmp_path / "critic"), 1)
    os.kill(idle.process_ids()[0], signal.SIGKILL)
    psutil.Process(idle.process_ids()[0]).wait(timeout=20)
    with pytest.raises(RunError, match=r"critic rank 0 of 1 on host .* died"):
        idle.values(train_rows(), WHOLE).result()
    idle.close()
    saved = tmp_path / "critic"
    assert not saved.exists() or (saved / "role.json").exists()


def test_a_stopped_rank_is_named(cluster: str) -> None:
    """Its peer waits for it in a collective, whose own time limit is a minute."""
    stopped = role("policy", LayoutConfig(data=2), silent_rank_s=3.0)
    started(stopped)
    process_ids = stopped.process_ids()
    stopped.update(train_rows(), HALVES, step=0).result()
    os.kill(process_ids[1], signal.SIGSTOP)
    with pytest.raises(
        RunError, match=r"policy rank 1 of 2 on host .* has not answered for 3 s while updating"
    ):
        stopped.update(train_rows(), HALVES, step=1).result()
    with pytest.raises(RunError, match="policy rank 1 of 2"):
        stopped.check()
    stopped.close()
    assert_gone(process_ids)


def test_what_the_user_can_mend_is_said(cluster: str) -> None:
    wrong = role("policy", LayoutConfig(tensor=3))
    wrong.begin_start()
    with pytest.raises(UserError, match="tensor=3 does not divide"):
        wrong.wait_started(lambda line: None)
    wrong.close()


def test_a_rank_that_never_starts_is_named(cluster: str) -> None:
    stuck = role("policy", LayoutConfig())
    stuck._start_timeout_s = 1.0
    stuck._scheduling = [{"num_cpus": 1, "resources": {"nowhere": 1}}]
    stuck.begin_start()
    with pytest.raises(RunError, match=r"policy ranks \[0\] did not finish starting in 1 s"):
        stuck.wait_started(lambda line: None)
    stuck.close()


DRIVER = """
import os, signal, sys, ray
from tests.trainer.test_role_ray import HALVES, LayoutConfig, role, started, train_rows
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", namespace="test-role",
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2], "OMP_NUM_THREADS": "1"}})
policy = role("policy", LayoutConfig(data=2))
started(policy)
ids = policy.process_ids()
os.kill(ids[1], signal.SIGSTOP)
pending = policy.update(train_rows(), HALVES, step=0)
print(*ids, flush=True)
pending.result()
"""


@pytest.mark.slow
def test_ranks_die_with_their_driver(cluster: str) -> None:
    """kill -9 of a driver that is attached to a cluster, while a rank waits in a collective."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster, ROOT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    try:
        assert driver.stdout is not None
        process_ids = [int(word) for word in driver.stdout.readline().split()]
        assert len(process_ids) == 2
    finally:
        driver.kill()
        driver.wait()
    assert_gone(process_ids)


def test_the_driver_loads_no_heavy_library() -> None:
    heavy: Any = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, trainer.ranks.role;"
            "print([m for m in ('torch', 'megatron', 'deepspeed', 'transformers') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert heavy.stdout.strip() == "[]"
