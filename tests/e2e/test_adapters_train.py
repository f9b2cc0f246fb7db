"""An environment of the real `verifiers` package and one behind a server of the real `openenv`, trained with."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from peers import needs_peer, served

from rlframe.metrics import read, series
from rlframe.store import TrajectoryStore
from rlframe.types import Status

STEPS, ATTEMPTS = 2, 16
ARGUMENTS = (
    "experiment=smoke",
    "env=reasoning_gym",
    "logging=quiet",
    f"steps={STEPS}",
    f"algorithm.batch_trajectories={ATTEMPTS}",
    "algorithm.critic_warmup_steps=0",
    "env.held_out=2",
    "rollout.max_turns=3",
    "rollout.sampling.max_new_tokens=8",
    "logging.eval_every=0",
    "logging.min_reward_rise=0",
    "cluster.min_memory_gib=1",
)
LETTERS = """
import verifiers as vf
from datasets import Dataset

WORDS = ["apple", "bread", "cheese", "dates", "eggs", "figs", "grapes", "honey"]

async def short(completion):
    return 1.0 / (1 + len(completion[-1].content))

class Again(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **kwargs):
        return [{"role": "user", "content": "Again, shorter."}]

def load_environment():
    rows = [{"question": f"The first letter of {word}?", "answer": word[0]} for word in WORDS]
    return Again(max_turns=2, dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[short]))
"""
SERVER = """
import sys

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

class Saying(Action):
    text: str

class Heard(Observation):
    text: str = ""

class Short(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    turns = 0
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.turns = 0
        return Heard(text="Say something short.")
    def step(self, action, timeout_s=None, **kwargs):
        self.turns += 1
        return Heard(text="Shorter.", reward=1 / (1 + len(action.text)), done=self.turns == 2)
    @property
    def state(self):
        return State(step_count=self.turns)

app = create_fastapi_app(Short, Saying, Heard, max_concurrent_envs=64)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1].split(":")[1]), log_level="warning")
"""


def train(place: Path, warm_start: Path, *extra: str) -> None:
    command = [sys.executable, "-m", "rlframe.cli.main", "train", *ARGUMENTS, *extra]
    own = (f"run_dir={place / 'run'}", f"model.path={warm_start}")
    done = subprocess.run([*command, *own], cwd=place, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


def check(run: Path) -> None:
    """Every attempt of two turns, each rewarded, and trained on to the token."""
    with closing(TrajectoryStore(run / "trajectories.sqlite", read_only=True)) as store:
        attempts = list(store.all())
    assert len(attempts) == STEPS * ATTEMPTS
    assert {attempt.status for attempt in attempts} == {Status.COMPLETED}
    assert all(0 < attempt.reward <= 2 for attempt in attempts)
    assert all(sum(trace.loss_mask.sum() for trace in a.traces) >= 2 for a in attempts)
    metrics = read(run / "metrics.jsonl")
    assert len(series(metrics, "policy/grad_norm")) == STEPS
    assert max(gap for _, gap in series(metrics, "gap/max")) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_peer("verifiers")
def test_verifiers(tmp_path: Path, warm_start: Path) -> None:
    (tmp_path / "my_letters.py").write_text(LETTERS)
    train(tmp_path, warm_start, "env.name=verifiers", "env.args.environment=my-letters")
    check(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_peer("openenv")
def test_openenv(tmp_path: Path, warm_start: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with served("openenv", tmp_path / "server.py", ["short"]) as urls:
        train(tmp_path, warm_start, "env.name=openenv", f"env.args.url={urls['short']}")
    check(tmp_path / "run")
