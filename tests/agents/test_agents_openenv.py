"""Environments behind servers of the real `openenv` package, unchanged: by text, by fields, by tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from peers import needs_peer, served

from envs.adapters.openenv import Acting, OpenEnvSource, OpenEnvText, OpenEnvTools
from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import InfraFault, TaskFault, UserError

pytestmark = needs_peer("openenv")

SERVER = """
import asyncio
import random
import sys

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Environment, Action, Observation, State, create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

class GuessAction(Action):
    guess: str

class GuessObservation(Observation):
    text: str = ""

class Guess(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self):
        super().__init__()
        self.number, self.count = None, 0
    def reset(self, seed=None, episode_id=None, top=9, **kwargs):
        if top < 0:
            raise OSError("no such level")
        self.number = random.Random(seed).randint(0, top)
        return GuessObservation(text="Guess a digit.")
    def step(self, action, timeout_s=None, **kwargs):
        self.count += 1
        if action.guess == "crash":
            raise ValueError("it broke")
        if action.guess == "nan":
            return GuessObservation(text="", done=True, reward=float("nan"))
        if action.guess == str(self.number):
            return GuessObservation(text="yes", done=True, reward=1.0)
        return GuessObservation(text="no", reward=-0.1, done=self.count >= 10)
    @property
    def state(self):
        return State(step_count=self.count)

class MoveAction(Action):
    row: int
    column: int

class Move(Guess):
    def step(self, action, timeout_s=None, **kwargs):
        won = (action.row, action.column) == (1, 2)
        return GuessObservation(text=f"at {action.row}, {action.column}", done=won, reward=float(won))

class Tools(MCPEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self):
        server = FastMCP("sums")
        self.total = 0
        @server.tool
        def add(a: int, b: int) -> int:
            "Add two numbers."
            return a + b
        @server.tool
        def fail() -> str:
            raise ValueError("it failed")
        super().__init__(server)
    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation(metadata={"task": "1 + 2?"})
    def _step_impl(self, action, timeout_s=None, **kwargs):
        return Observation()
    @property
    def state(self):
        return State()

KINDS = {
    "guess": (Guess, GuessAction, GuessObservation),
    "move": (Move, MoveAction, GuessObservation),
    "tools": (Tools, CallToolAction, CallToolObservation),
}

async def main():
    servers = []
    for kind, port in (word.split(":") for word in sys.argv[1:]):
        most = 2 if kind == "tools" else 8
        app = create_fastapi_app(*KINDS[kind], max_concurrent_envs=most)
        servers.append(uvicorn.Server(uvicorn.Config(app, port=int(port), log_level="error")))
    await asyncio.gather(*(server.serve() for server in servers))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """One server a kind of environment; the third takes two sessions at a time."""
    script = tmp_path_factory.mktemp("openenv") / "server.py"
    script.write_text(SERVER)
    with served("openenv", script, ("guess", "move", "tools")) as found:
        yield found


def source_of(url: str, **given: Any) -> OpenEnvSource:
    source = make_source("openenv", {"url": url, **given}, seed=0, held_out=3)
    assert isinstance(source, OpenEnvSource)
    return source


async def test_an_environment_that_reads_a_text(urls: Mapping[str, str]) -> None:
    source = source_of(urls["guess"], system="One digit.")
    check_source(source, name="openenv")
    train = {source.train_task(index).seed for index in range(50)}
    assert len(train) == 50
    assert not train & {task.seed for task in source.held_out_tasks()}
    earned = []
    for digit in range(10):
        env = source.make(source.train_task(0))
        assert isinstance(env, OpenEnvText)
        assert [m["content"] for m in await env.start()] == ["One digit.", "Guess a digit."]
        result = await env.step(str(digit))
        if not result.done:
            assert (result.reward, result.messages[0]["content"]) == (-0.1, "no")
        else:
            assert result.info["state"]["step_count"] == 1
        earned.append(result.reward)
        await env.close()
    assert sorted(earned) == [-0.1] * 9 + [1.0]


async def test_an_environment_with_fields(urls: Mapping[str, str]) -> None:
    source = source_of(urls["move"])
    check_source(source, name="openenv")
    env = source.make(source.train_task(0))
    assert isinstance(env, OpenEnvTools)
    (tool,) = env.tools
    assert (tool["name"], set(tool["parameters"]["properties"])) == ("step", {"row", "column"})
    await env.start()
    calls = [
        {"id": "1", "name": "step", "arguments": {"row": 0, "column": 0}},
        {"id": "2", "name": "step", "arguments": {"row": "x"}},
        {"id": "3", "name": "stap", "arguments": {}},
    ]
    result = await env.act({"role": "assistant", "content": "", "tool_calls": calls})
    said = [m["content"] for m in result.messages]
    assert said[0] == "at 0, 0"
    assert said[1].startswith("Error: row: Input should be a valid integer")
    assert said[2] == "Error: there is no tool 'stap'. Did you mean 'step'?"
    calls = [{"id": "4", "name": "step", "arguments": {"row": 1, "column": 2}}]
    result = await env.act({"role": "assistant", "content": "", "tool_calls": calls})
    assert (result.done, result.reward) == (True, 1.0)
    await env.close()
    with pytest.raises(UserError, match=r"no such field. Did you mean 'row'"):
        source_of(urls["move"], fill="rows").make(source.train_task(0))


async def test_an_environment_with_tools(urls: Mapping[str, str]) -> None:
    source = source_of(urls["tools"])
    env = source.make(source.train_task(0))
    assert isinstance(env, OpenEnvTools)
    assert [tool["name"] for tool in env.tools] == ["add", "fail"]
    assert env.tools[0]["parameters"]["properties"]["a"] == {"type": "integer"}
    assert (await env.start())[0]["content"] == "1 + 2?"
    calls = [
        {"id": "1", "name": "add", "arguments": {"a": 1, "b": 2}},
        {"id": "2", "name": "fail", "arguments": {}},
        {"id": "3", "name": "add", "arguments": {"a": "x"}},
        {"id": "4", "name": "add", "arguments": "{"},
    ]
    result = await env.act({"role": "assistant", "content": "", "tool_calls": calls})
    said = [m["content"] for m in result.messages]
    assert said[0] == "3"
    assert all(text.startswith("Error: ") for text in said[1:])
    result = await env.act({"role": "assistant", "content": "3", "tool_calls": []})
    assert (result.done, result.reward, len(result.info["tool_calls"])) == (True, 0.0, 4)
    await env.close()


async def test_whose_fault_it_is(urls: Mapping[str, str]) -> None:
    source = source_of(urls["guess"], reset={"top": -1})
    env: Any = source.make(source.train_task(0))
    with pytest.raises(TaskFault, match=r"failed in reset: no such level"):
        await env.start()
    await env.close()
    for said, fault in (
        ("crash", "failed in step: it broke"),
        ("nan", "without a .finite. reward"),
    ):
        env = source_of(urls["guess"]).make(source.train_task(0))
        await env.start()
        with pytest.raises(TaskFault, match=fault):
            await env.step(said)
        await env.close()
    # The tools' server takes two sessions at a time.
    source = source_of(urls["tools"])
    envs: list[Any] = [source.make(source.train_task(index)) for index in range(3)]
    await envs[0].start()
    await envs[1].start()
    with pytest.raises(InfraFault, match=r"CAPACITY_REACHED"):
        await envs[2].start()
    for env in envs:
        await env.close()


async def test_no_server() -> None:
    source = source_of("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no OpenEnv server at http://127.0.0.1:9"):
        check_source(source, name="openenv")
    env = OpenEnvText(source.train_task(0), source._options, Acting(fill="text"))
    with pytest.raises(InfraFault, match=r"no OpenEnv server at http://127.0.0.1:9"):
        await env.start()
    with pytest.raises(UserError, match=r"env.args.url='127.0.0.1'"):
        source_of("127.0.0.1")
