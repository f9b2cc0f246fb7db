"""Environments of the real `verifiers` package, unchanged: right use, and every kind of wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from family_templates import QWEN3, save_family_tokenizer
from peers import needs_peer
from scripted_policy import RuledEngine, call, says

from envs.adapters.verifiers_env import VerifiersEnv, VerifiersSource, VerifiersToolEnv
from envs.registry import make_source
from envs.source_check import check_source
from rlframe.errors import InfraFault, TaskFault, UserError
from rlframe.interfaces import RolloutRequest
from rlframe.types import Status, Task
from rollout.engine.parser_check import parser_for
from rollout.modes.white_box import Limits, WhiteBox
from rollout.policy_client import PolicySettings
from rollout.renderer import Renderer

pytestmark = needs_peer("verifiers")

ENVIRONMENTS = """
import verifiers as vf
from datasets import Dataset

ROWS = [{"question": f"{a} + {a}?", "answer": str(2 * a)} for a in range(10)]
ROWS += [{"question": kind, "answer": kind} for kind in ("nan", "raising", "broken", "rewriting")]

class Guess(vf.MultiTurnEnv):
    "Says higher or lower until the number is right."

    async def setup_state(self, state):
        if state["answer"] == "broken":
            raise OSError("no such level")

    async def get_prompt_messages(self, state):
        if state["answer"] == "rewriting":
            return [{"role": "user", "content": f"turn {len(state['trajectory'])}"}]
        return await super().get_prompt_messages(state)

    async def env_response(self, messages, state, **kwargs):
        print("a print of the environment's")
        said, right = messages[-1].content, state["answer"]
        if said == right:
            state["final_env_response"] = [{"role": "user", "content": "Right."}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if int(said) < int(right) else "lower"}]

async def right(completion, answer):
    if answer == "raising":
        raise KeyError("label")
    if answer == "nan":
        return float("nan")
    return float(completion[-1].content in (answer, "Right."))

def short(completion):
    return 1.0 / len(completion)

def double(number: int) -> int:
    "Twice the number."
    return 2 * number

async def together(completions):
    return [1.0 for _ in completions]

def load_environment(kind="guess"):
    data = Dataset.from_list(ROWS)
    rubric = vf.Rubric(funcs=[right, short], weights=[1.0, 0.5])
    more = {"dataset": data, "system_prompt": "Only the number."}
    if kind == "tools":
        held_out = Dataset.from_list(ROWS[:3])
        return vf.ToolEnv(tools=[double], max_turns=4, eval_dataset=held_out, rubric=rubric, **more)
    if kind == "together":
        return vf.SingleTurnEnv(rubric=vf.Rubric(funcs=[together]), **more)
    return Guess(max_turns=5, rubric=rubric, **more)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with an environment of one's own."""
    directory = tmp_path_factory.mktemp("mine")
    (directory / "my_puzzles.py").write_text(ENVIRONMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield directory


@pytest.fixture(scope="module")
def guess(place: Path) -> Iterator[VerifiersSource]:
    source = source_of("guess")
    yield source
    source.side.program.end()


@pytest.fixture(scope="module")
def tools(place: Path) -> Iterator[VerifiersSource]:
    source = source_of("tools")
    yield source
    source.side.program.end()


def source_of(kind: str, **more: Any) -> VerifiersSource:
    given = {"environment": "my-puzzles", "args": {"kind": kind}, **more}
    source = make_source("verifiers", given, seed=0, held_out=2)
    assert isinstance(source, VerifiersSource)
    return source


def task_about(source: VerifiersSource, row: int) -> Task:
    return Task("one", "mine", (), {"split": "train", "row": row})


async def test_an_environment_of_several_turns(guess: VerifiersSource) -> None:
    """Its loop, its stop conditions, its rubric with weights; several attempts at a time."""
    check_source(guess, name="verifiers")
    assert {guess.train_task(index).data["row"] for index in range(12)} == set(range(12))
    assert [task.data["row"] for task in guess.held_out_tasks()] == [12, 13]
    first, second = (guess.make(task_about(guess, 3)) for _ in range(2))
    assert isinstance(first, VerifiersEnv)
    assert isinstance(second, VerifiersEnv)
    for env in (first, second):
        opening = [(m["role"], m["content"]) for m in await env.start()]
        assert opening == [("system", "Only the number."), ("user", "3 + 3?")]
    result = await first.step("5")
    assert (result.done, list(result.messages)) == (False, [{"role": "user", "content": "higher"}])
    result = await first.step("6")
    # right: 1.0 times 1; short: one over the four messages that followed the prompt, times 0.5.
    assert (result.done, result.reward) == (True, pytest.approx(1.0 + 0.5 / 4))
    assert result.info["metrics"]["right"] == 1.0
    assert result.info["stop"] == "has_final_env_response"
    for turn in range(5):
        result = await second.step("9")
        assert result.done == (turn == 4)
    assert result.info["stop"] == "max_turns_reached"
    assert result.reward == pytest.approx(0.5 / 9)


async def test_an_environment_with_tools(tools: VerifiersSource) -> None:
    """And with a set of its own for evaluation."""
    source = tools
    check_source(source, name="verifiers")
    assert [task.data["row"] for task in source.held_out_tasks()] == [0, 1]
    assert {source.train_task(index).data["row"] for index in range(14)} == set(range(14))
    env = source.make(source.held_out_tasks()[1])
    assert isinstance(env, VerifiersToolEnv)
    (tool,) = env.tools
    assert (tool["name"], tool["description"]) == ("double", "Twice the number.")
    assert tool["parameters"]["properties"]["number"]["type"] == "integer"
    assert [m["content"] for m in await env.start()] == ["Only the number.", "1 + 1?"]
    calls = [
        {"id": "a", "name": "double", "arguments": {"number": 8}},
        {"id": "b", "name": "double", "arguments": {"nummer": 8}},
    ]
    result = await env.act({"role": "assistant", "content": "", "tool_calls": calls})
    assert [m["tool_call_id"] for m in result.messages] == ["a", "b"]
    assert result.messages[0]["content"] == "16"
    assert "nummer" in result.messages[1]["content"]
    result = await env.act({"role": "assistant", "content": "2", "tool_calls": []})
    assert (result.done, result.info["metrics"]["right"]) == (True, 1.0)


async def attempt(source: VerifiersSource, task: Task, place: Path, *script: str) -> Any:
    """Made by our white-box mode: the trajectory, and the engine's log."""
    renderer = Renderer(str(save_family_tokenizer(place / "tokenizer", QWEN3)))
    left = list(script)
    engine = RuledEngine(renderer, lambda prompt: left.pop(0))
    mode = WhiteBox(
        source.make,
        PolicySettings(
            generate=engine.generate,
            renderer=renderer,
            sampling={"temperature": 1.0, "max_new_tokens": 4000},
            max_context_tokens=100_000,
            parser=parser_for(renderer, tool_call_parser="qwen25", reasoning_parser="qwen3"),
        ),
        limits=Limits(max_turns=8, attempt_timeout_s=120.0, infra_retries=0),
    )
    made = await mode.run(RolloutRequest("a", task))
    trained = [renderer._tokenizer.decode(t.token_ids[t.loss_mask].tolist()) for t in made.traces]
    return made, engine, trained


async def test_attempts_of_ours_are_token_exact(tools: VerifiersSource, tmp_path: Path) -> None:
    """Our policy samples: one trace, in which exactly what it said trains; a NaN is the task's failure."""
    source = tools
    script = [says("", call("double", number=1)), says("2")]
    made, engine, trained = await attempt(source, source.held_out_tasks()[1], tmp_path, *script)
    assert (made.status, made.reward) == (Status.COMPLETED, pytest.approx(1.0 + 0.5 / 3))
    assert engine.log[1].prompt.results == ["2"]
    assert trained == ["".join(f"{said}<|im_end|>" for said in script)]
    made, _, _ = await attempt(source, task_about(source, 10), tmp_path, says("1"))
    assert made.status is Status.FAILED
    assert "must be a finite number" in made.info["error"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (10, "must be a finite number"),
        (11, "Error calling reward function right: 'label'"),
        (12, "OSError: no such level"),
        (13, "rewrites what was said"),
    ],
)
async def test_environments_that_fail_are_the_tasks_fault(
    guess: VerifiersSource, row: int, said: str
) -> None:
    env: Any = guess.make(task_about(guess, row))

    async def attempt() -> None:
        opening = await env.start()
        await env.step(opening[-1]["content"])

    with pytest.raises(TaskFault, match=said):
        await attempt()
    await env.close()


async def test_a_process_that_dies_is_started_again(guess: VerifiersSource) -> None:
    env: Any = guess.make(guess.train_task(0))
    await env.start()
    process = guess.side.program.process
    assert process is not None
    process.kill()
    with pytest.raises(InfraFault, match=r"has ended"):
        await env.step("1")
    await env.close()
    env = guess.make(task_about(guess, 3))
    assert len(await env.start()) == 2
    guess.side.turn_timeout_s = 1e-6
    with pytest.raises(TaskFault, match=r"did not answer in 1e-06 s"):
        await env.step("1")


def test_arguments_that_are_wrong(place: Path) -> None:
    def tried(**given: Any) -> None:
        make_source("verifiers", {"environment": "my-puzzles", **given}, seed=0, held_out=14)

    with pytest.raises(UserError, match=r"no such environment.*Did you mean 'my_puzzles'"):
        tried(environment="my-puzzle")
    with pytest.raises(UserError, match=r"TypeError: .*kinds"):
        tried(args={"kinds": 1})
    with pytest.raises(UserError, match=r"scores groups"):
        tried(args={"kind": "together"})
    with pytest.raises(UserError, match=r"14 training rows"):
        tried()
    with pytest.raises(UserError, match=r"env.args.python=/nowhere"):
        tried(python="/nowhere")
