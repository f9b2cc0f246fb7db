"""`rlframe inspect`: the report, one trajectory as text, and exports that others can read."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rlframe.errors import UserError
from rlframe.inspect import run_inspect
from rlframe.metrics import Metrics
from rlframe.store import TrajectoryStore
from rlframe.types import NO_VERSION, Link, LinkKind, Reward, Status, Trace, Trajectory

WORDS = ["<s>", "what", "is", "1+1", "it", "makes", "2", "</s>"]


def trace(ids: list[int], mask: list[bool]) -> Trace:
    trains = np.array(mask)
    return Trace(
        token_ids=np.array(ids, np.int32),
        loss_mask=trains,
        rollout_logprobs=np.where(trains, -0.5, 0).astype(np.float32),
        versions=np.where(trains, 3, NO_VERSION).astype(np.int32),
    )


@pytest.fixture
def run(tmp_path):
    """A run directory with two trajectories, one of them dropped."""
    store = TrajectoryStore(tmp_path / "trajectories.sqlite")
    traces = (
        trace([0, 1, 2, 3, 4, 5, 6, 7], [False] * 4 + [True] * 4),
        trace([0, 4, 6], [False, True, False]),
    )
    good = Trajectory(
        id="train/000000000",
        task_id="gcd/0",
        domain="gcd",
        status=Status.COMPLETED,
        traces=traces,
        rewards=(Reward(1.0), Reward(0.25, 1, 1)),
        links=(Link(LinkKind.CONTINUES, 1, 0),),
        info={"turns": 1, "prompt": "what is 1+1", "response": "[red]it makes 2"},
    )
    failed = Trajectory(
        id="train/000000001", task_id="gcd/1", domain="gcd", status=Status.FAILED, traces=()
    )
    store.admit([good.id, failed.id])
    store.put([good, failed])
    store.drop(failed.id, "failed: the verifier raised KeyError: [answer]")
    store.record_batch(0, [good.id])
    store.close()
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.log(
        1, {"reward/mean": 0.5, "gap/max": 1e-6, "rollout/tokens": 11, "rollout/actions": 5}
    )
    metrics.close()
    return tmp_path


def shown(run, **what) -> str:
    out = Console(file=io.StringIO(), width=120)
    assert run_inspect(run, console=out, **what) == 0
    return out.file.getvalue()


def test_the_report(run):
    text = shown(run)
    for expected in ("2 admitted", "1 trained", "1 dropped", "0 unfinished", "gcd", "completed",
                     "KeyError: [answer]", "train/000000000", "1.250"):  # fmt: skip
        assert expected in text, expected


def test_a_turn_that_a_guard_masked(run):
    store = TrajectoryStore(run / "trajectories.sqlite")
    event = {
        "blocked": True,
        "category": "x",
        "why": "reads a secret",
        "by": "rules",
        "tool": "bash",
    }
    guard = {"masked": [[0, 2, 4], [1, 0, 1]], "events": [{**event, "turn": 0}]}
    traces = (trace([0, 1, 2, 3, 4, 5], [False] * 4 + [True] * 2), trace([0, 1], [False, True]))
    store.put(
        [
            Trajectory(
                id="train/000000002",
                task_id="gcd/2",
                domain="gcd",
                status=Status.COMPLETED,
                traces=traces,
                info={"guard": guard},
            )
        ]
    )
    store.close()
    text = shown(run, trajectory="train/000000002")
    assert "0 1 ⟬2 3 ⟭⟦4 5 ⟧" in text
    assert "⟬0 ⟭⟦1 ⟧" in text
    assert "reads a secret" in text


def test_a_trajectory_without_and_with_the_tokenizer(run):
    text = shown(run, trajectory="train/000000000")
    assert "0 1 2 3 ⟦4 5 6 7 ⟧" in text
    assert "1 on its last action of trace 0" in text
    assert "0.25 on token 1 of trace 1" in text
    assert "trace 1 continues trace 0" in text
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<s>"))
    (run / "model").mkdir()
    tokenizer.save(str(run / "model" / "tokenizer.json"))
    text = shown(run, trajectory="train/000000000")
    assert "<s> what is 1+1⟦it makes 2 </s>⟧" in text
    assert "8 tokens, 4 trained, versions [3]" in text


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'train/000000001'"):
        shown(run, trajectory="train/00000001")
    with pytest.raises(UserError, match="holds no run"):
        shown(run / "nowhere")


def test_runs_nearby_are_offered(run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(run, runs / "mine")
    with pytest.raises(UserError, match=r"Runs in .*: mine"):
        shown(runs / "other")


def test_parquet_is_read_by_duckdb_and_pandas(run):
    duckdb = pytest.importorskip("duckdb")
    pandas = pytest.importorskip("pandas")
    path = run / "out.parquet"
    assert "2 trajectories" in shown(run, export=str(path))
    rows = duckdb.sql(
        f"SELECT id, reward, step, drop_reason, traces[1].token_ids, traces[2].rollout_logprobs "
        f"FROM '{path}' ORDER BY id"
    ).fetchall()
    assert rows[0] == (
        "train/000000000", 1.25, 0, None, [0, 1, 2, 3, 4, 5, 6, 7], [0.0, -0.5, 0.0],
    )  # fmt: skip
    assert rows[1][2:4] == (None, "failed: the verifier raised KeyError: [answer]")
    frame = pandas.read_parquet(path)
    assert frame["response"][0] == "[red]it makes 2"
    assert json.loads(frame["info"][0])["turns"] == 1
    assert [p.name for p in run.glob(".*")] == []


def test_an_export_that_cannot_be_written(run):
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="cannot be written"):
        shown(run, export=str(run / "no" / "such" / "directory.parquet"))


def test_a_run_of_sft_has_no_trajectories(run):
    (run / "trajectories.sqlite").unlink()
    assert "steps" in shown(run)


def test_the_picture(run):
    assert "wrote" in shown(run, picture=str(run / "view.svg"))
    assert "<svg" in (run / "view.svg").read_text()
