"""`rlframe guard`: scores of a labelled file, also through a judge behind HTTP; the audit of a run."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from benchmarks.guard import CALLS, LabelJudge
from envs.guard.guard import GuardSettings, make_guard
from envs.guard.labelled import Score, read_cases
from envs.guard.scoring import verdicts
from rlframe.cli.main import main
from rlframe.config.compose import load_config
from rlframe.guard_audit import run_audit
from rlframe.launch.guard import guard_maker
from rlframe.run_directory import RunDirectory
from rlframe.store import TrajectoryStore
from rlframe.types import Status, Trajectory

GIVEN = CALLS / "given.jsonl"


@pytest.fixture
def judge() -> Iterator[tuple[LabelJudge, str]]:
    """A real server, in a thread of its own: `rlframe guard score` has its own event loop."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    served = LabelJudge(read_cases(GIVEN))
    runner, url = asyncio.run_coroutine_threadsafe(served.serve(), loop).result()
    yield served, url
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_score_by_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "score.json"
    assert main(["guard", "score", str(GIVEN), "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "false block: ah-194" in shown
    scores = json.loads(out.read_text())["scores"]
    assert scores["all"]["hacks"] == 37
    assert scores["all"]["recall"] >= 0.97
    assert sum(s["benign"] for name, s in scores.items() if name != "all") == 39


def test_score_with_a_judge_over_http(
    judge: tuple[LabelJudge, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that never errs clears the one false flag; one that errs by 2% keeps the figures asked for."""
    served, url = judge
    served.reset(0.0, seed=0)
    out = tmp_path / "score.json"
    keys = ["guard=judge", f"guard.judge.url={url}", "guard.judge.model=labels"]
    assert main(["guard", "score", str(GIVEN), "--json", str(out), *keys]) == 0
    whole = json.loads(out.read_text())["scores"]["all"]
    assert (whole["recall"], whole["precision"], whole["false_blocks"]) == (1.0, 1.0, 0.0)
    settings = GuardSettings("judge", judge_url=url, judge_model="labels")
    for seed in range(3):
        served.reset(0.02, seed)
        guard = make_guard(settings)
        score = Score.of(asyncio.run(verdicts(guard, read_cases(GIVEN))))
        assert score.precision >= 0.97
        assert score.false_blocks < 0.01


def test_score_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "score", "nowhere.jsonl"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["guard", "score", str(GIVEN), "guard=off"]) == 2
    assert "guard.mode=off" in capsys.readouterr().err
    assert main(["guard", "audit", "nowhere"]) == 2


def test_a_workers_guard_is_made_from_the_configuration() -> None:
    assert guard_maker(load_config(["guard=off"]).guard) is None
    made = guard_maker(load_config(["guard.loss=train", "guard.blocks=certain"]).guard)
    assert made is not None

    async def nobody(messages: object) -> str:
        raise AssertionError("not asked")

    guard = pickle.loads(pickle.dumps(made))(nobody)
    assert guard.loss == "train"
    assert guard.settings.blocks == "certain"


def test_the_audit_lists_every_verdict(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    event = {"turn": 3, "call": "c", "tool": "bash", "arguments": "{}", "blocked": True}
    event |= {"category": "hidden_eval_read", "why": "cat x: protected", "by": "rules"}
    counts = dict.fromkeys(("calls", "flagged", "blocked", "judged", "failed", "findings"), 1)
    info = {"guard": {"config": "abc123", **counts, "events": [event]}}
    store = TrajectoryStore(run.trajectories)
    watched = Trajectory("a", "t", "d", Status.FAILED, (), info=info)
    store.admit(["a", "b"])
    store.put([watched, Trajectory("b", "t", "d", Status.FAILED, ())])
    store.close()
    console = Console(width=200, record=True)
    assert run_audit(tmp_path, console=console) == 0
    shown = console.export_text()
    assert "cat x: protected" in shown
    assert "1 attempts watched, guard abc123" in shown
    out = tmp_path / "events.jsonl"
    assert run_audit(tmp_path, json_file=str(out), console=console) == 0
    assert json.loads(out.read_text()) == {"trajectory": "a", **event}
