"""Stored runs as a data set: what is in it, how it is split, and what is refused."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from rlframe.errors import UserError
from rlframe.store import TrajectoryStore
from rlframe.stored_trajectories import StoredTrajectories
from rlframe.types import Reward, Status, Trace, Trajectory


def trajectory(name: str, task: str, *, tokens: int = 5, version: int = 0) -> Trajectory:
    mask = np.arange(tokens) > 1
    trace = Trace(
        np.arange(tokens, dtype=np.int32),
        mask,
        np.where(mask, -1, 0).astype(np.float32),
        np.where(mask, version, -1).astype(np.int32),
    )
    return Trajectory(name, task, "d", Status.COMPLETED, (trace,), (Reward(1.0),))


def stored(path, trajectories):
    path.mkdir()
    with closing(TrajectoryStore(path / "trajectories.sqlite")) as store:
        store.put(trajectories)
    return str(path)


def opened(*runs, until_version=-1, max_trace_tokens=100):
    return StoredTrajectories(runs, until_version=until_version, max_trace_tokens=max_trace_tokens)


def test_several_runs_are_one_data_set(tmp_path):
    a = stored(tmp_path / "a", [trajectory(f"a{i}", f"t{i}") for i in range(3)])
    b = stored(tmp_path / "b", [trajectory("a0", "t9", tokens=7)])
    with opened(a, b) as data:
        assert [t.task_id for t in data.load([3, 1])] == ["t9", "t1"]
        assert (len(data), data.longest) == (4, 7)


def test_a_task_is_on_one_side_in_every_run(tmp_path):
    runs = [
        stored(tmp_path / name, [trajectory(f"{i}/{k}", f"t{i}") for i in range(60) for k in "ab"])
        for name in ("x", "y")
    ]
    with opened(*runs) as data:
        training, held_out = data.split(held_out_share=0.3)
        tasks = [{t.task_id for t in data.load(side)} for side in (training, held_out)]
        assert not tasks[0] & tasks[1]
        assert sorted(training + held_out) == list(range(240))
        assert 0.15 < len(held_out) / 240 < 0.45
        everything, none = data.split(held_out_share=0.0)
        assert (len(everything), none) == (240, [])


def test_what_does_not_train_is_left_out_and_counted(tmp_path):
    good = trajectory("good", "t0")
    idle = replace(good.traces[0], loss_mask=np.zeros(5, bool))
    idle = replace(
        idle, rollout_logprobs=np.zeros(5, np.float32), versions=np.full(5, -1, np.int32)
    )
    run = stored(
        tmp_path / "run",
        [
            good,
            replace(good, id="failed", status=Status.FAILED),
            replace(good, id="idle", traces=(idle,)),
            replace(good, id="nan", rewards=(Reward(float("nan")),)),
            trajectory("late", "t1", version=3),
            trajectory("long", "t2", tokens=50),
        ],
    )
    with opened(run, until_version=2, max_trace_tokens=20) as data:
        assert [t.id for t in data.load(range(len(data)))] == ["good"]
        assert sum(data.left_out.values()) == 5
        for words in ("ended as failed", "without an action", "reward that is no number",
                      "until_version=2", "20 tokens"):  # fmt: skip
            assert any(words in reason for reason in data.left_out)
        with pytest.raises(
            UserError, match=r"held_out_share=0.5 leaves .* 1 trajectories of 1 task"
        ):
            data.split(held_out_share=0.5)


def test_a_source_without_anything_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"algorithm.source_runs is empty"):
        opened()
    empty = stored(tmp_path / "empty", [])
    with pytest.raises(UserError, match=r"empty' has stored no trajectory"):
        opened(empty)
    with pytest.raises(UserError, match=rf"no run directory.*Beside it: {empty}"):
        opened(str(tmp_path / "emty"))
    (tmp_path / "sft").mkdir()
    with pytest.raises(UserError, match=r"sft' has no trajectories.sqlite"):
        opened(str(tmp_path / "sft"))
    failed = replace(trajectory("a", "t"), status=Status.INFRA_ERROR)
    lost = stored(tmp_path / "lost", [failed])
    with pytest.raises(UserError, match=r"none of the 1 trajectories of .*1 ended as infra_error"):
        opened(lost)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "trajectories.sqlite").write_bytes(b"not a database, but long enough to be one " * 9)
    with pytest.raises(UserError, match=r"cannot be opened as a trajectory store"):
        opened(str(torn))
