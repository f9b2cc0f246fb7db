"""Functions, Gymnasium and MCP as sources: right use, and every kind of wrong one by whose fault it is.

MCP against a stand-in of a server; the real SDK and Gymnasium: tests/agents.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.functions import FunctionsSource
from envs.adapters.gymnasium_text import GymnasiumSource
from envs.adapters.mcp_client import connect_http, connect_stdio
from envs.adapters.mcp_env import McpSource
from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import InfraFault, TaskFault, UserError
from rlframe.interfaces import ToolEnv

STAND_IN = str(Path(__file__).parents[1] / "mcp_stand_in.py")
MINE = """
import asyncio, random

TASKS = [{"prompt": f"{a} + {a}?", "answer": str(2 * a)} for a in range(10)]

def tasks():
    yield from TASKS

def wrong_tasks():
    return [{"question": 1}]

def broken_tasks():
    raise RuntimeError("no such file")

async def reward(answer, task):
    await asyncio.sleep(0)
    return {"reward": float(answer.strip() == task["answer"]), "calls": len(task.get("calls", []))}

def nan(answer, task):
    return float("nan")

def nothing(answer, task):
    return {"score": 1}

def raises(answer, task):
    raise KeyError("label")

class Guess:
    def reset(self, seed=None):
        self.number, self.left = random.Random(seed).randint(0, 9), 3
        return "Guess a digit.", {}
    def step(self, action):
        self.left -= 1
        right = action == self.number
        return "no", float(right), right, self.left == 0, {"left": self.left}

class AsyncGuess(Guess):
    async def step(self, action):
        return Guess.step(self, action)

class NoReset(Guess):
    def reset(self, seed=None):
        raise OSError("no such level")

class Two(Guess):
    def step(self, action):
        return "no", 0.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def functions(name: str, tasks: str = "tasks", reward: str = "reward") -> FunctionsSource:
    given = {"tasks": f"{name}:{tasks}", "reward": f"{name}:{reward}"}
    source = make_source("functions", given, seed=0, held_out=2)
    assert isinstance(source, FunctionsSource)
    return source


async def test_functions(mine: str) -> None:
    source = functions(mine)
    check_source(source, name="functions")
    task = source.train_task(0)
    held = {t.data["row"]["answer"] for t in source.held_out_tasks()}
    assert held == {"16", "18"}
    seen = {source.train_task(i).data["row"]["answer"] for i in range(8)}
    assert len(seen) == 8
    assert not seen & held
    right = await source.make(task).step(task.data["row"]["answer"])
    assert (right.done, right.reward, right.info) == (True, 1.0, {"calls": 0})
    assert (await source.make(task).step("x")).reward == 0.0


@pytest.mark.parametrize(
    ("reward", "said"), [("nan", "must be a finite number"), ("nothing", "without `reward`")]
)
async def test_a_reward_function_that_gives_none(mine: str, reward: str, said: str) -> None:
    source = functions(mine, reward=reward)
    with pytest.raises(TaskFault, match=said):
        await source.make(source.train_task(0)).step("x")


def test_functions_that_are_none(mine: str) -> None:
    with pytest.raises(UserError, match=r"task 0 is .*'question'.*`prompt`"):
        functions(mine, tasks="wrong_tasks").train_task(0)
    with pytest.raises(UserError, match="RuntimeError: no such file"):
        functions(mine, tasks="broken_tasks").train_task(0)
    with pytest.raises(UserError, match="has no 'rewrd'"):
        functions(mine, reward="rewrd")


def gymnasium_source(mine: str, name: str) -> GymnasiumSource:
    given = {"make": f"{mine}:{name}", "action": "builtins:int"}
    source = make_source("gymnasium", given, seed=0, held_out=3)
    assert isinstance(source, GymnasiumSource)
    return source


@pytest.mark.parametrize("name", ["Guess", "AsyncGuess"])
async def test_gymnasium_episodes(mine: str, name: str) -> None:
    source = gymnasium_source(mine, name)
    check_source(source, name="gymnasium")
    train = {source.train_task(i).seed for i in range(100)}
    assert not train & {task.seed for task in source.held_out_tasks()}
    rewards = []
    for guess in range(10):
        env = source.make(source.train_task(0))
        assert [m["content"] for m in await env.start()] == ["Guess a digit."]
        result = await env.step("a digit")
        assert not result.done
        assert "That is no action" in result.messages[0]["content"]
        for _ in range(3):
            result = await env.step(str(guess))
            if result.done:
                break
        rewards.append(result.reward)
        assert result.info["truncated"] == (result.reward == 0.0)
        await env.close()
    assert sorted(rewards) == [0.0] * 9 + [1.0]


async def test_gymnasium_faults(mine: str) -> None:
    source = gymnasium_source(mine, "NoReset")
    with pytest.raises(OSError, match="no such level"):  # the loop makes it the task's fault
        await source.make(source.train_task(0)).start()
    source = gymnasium_source(mine, "Two")
    env = source.make(source.train_task(0))
    await env.start()
    with pytest.raises(TaskFault, match="must be five values"):
        await env.step("1")
    with pytest.raises(UserError, match="either make"):
        make_source("gymnasium", {}, seed=0, held_out=1)


async def test_mcp_over_stdio() -> None:
    server = await connect_stdio([sys.executable, STAND_IN], timeout_s=20)
    assert [tool["name"] for tool in await server.tools()] == ["add", "fail", "die", "hang"]
    both = await asyncio.gather(
        server.call("add", {"a": 1, "b": 2}), server.call("add", {"a": 3, "b": 4})
    )
    assert both == ["3\n[image: not shown]", "7\n[image: not shown]"]
    assert await server.call("fail", {}) == "Error: it failed"
    with pytest.raises(InfraFault, match="has ended"):
        await server.call("die", {})
    with pytest.raises(InfraFault, match="has ended"):
        await server.call("add", {})
    await server.close()


async def test_mcp_servers_that_do_not_serve() -> None:
    with pytest.raises(InfraFault, match="does not start"):
        await connect_stdio(["/nowhere/server"])
    with pytest.raises(InfraFault, match="did not answer initialize"):
        await connect_stdio(["sleep", "1000"], timeout_s=0.2)
    with pytest.raises(InfraFault, match="has ended"):
        await connect_stdio(["false"], timeout_s=20)
    with pytest.raises(InfraFault):
        await connect_http("http://127.0.0.1:9/mcp", timeout_s=5)
    server = await connect_stdio([sys.executable, STAND_IN], timeout_s=20)
    server.timeout_s = 0.2
    with pytest.raises(InfraFault, match="did not answer tools/call"):
        await server.call("hang", {})
    await server.close()


async def test_an_attempt_with_mcp_tools(mine: str) -> None:
    given = {
        "tasks": f"{mine}:tasks",
        "reward": f"{mine}:reward",
        "command": [sys.executable, STAND_IN],
    }
    source = make_source("mcp", given, seed=0, held_out=1)
    assert isinstance(source, McpSource)
    task = source.train_task(0)
    env = source.make(task)
    assert isinstance(env, ToolEnv)
    assert env.tools[0]["parameters"]["properties"]["a"] == {"type": "integer"}
    await env.start()
    half = int(task.data["row"]["answer"]) // 2
    calls: list[Mapping[str, Any]] = [
        {"id": "1", "name": "add", "arguments": {"a": half, "b": half}},
        {"id": "2", "name": "ad", "arguments": {}},
        {"id": "3", "name": "add", "arguments": "{"},
    ]
    result = await env.act({"role": "assistant", "content": "", "tool_calls": calls})
    said = [m["content"] for m in result.messages]
    assert said[0].startswith(task.data["row"]["answer"])
    assert said[1:] == ["Error: there is no tool 'ad'.", "Error: the arguments must be an object."]
    answer = {"role": "assistant", "content": task.data["row"]["answer"], "tool_calls": []}
    result = await env.act(answer)
    assert (result.done, result.reward, result.info["calls"]) == (True, 1.0, 3)
    await env.close()
