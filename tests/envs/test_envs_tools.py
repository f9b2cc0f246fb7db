"""Tools of a white-box agent: what they say to right and to wrong calls, what is logged, whose fault it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandboxes import SMALL, needs_bubblewrap

from envs.sandbox.bwrap import open_bwrap
from envs.sandbox.local import open_local
from envs.tools.tool import ToolSettings, cut, text_of
from envs.tools.tool_env import ALL_TOOLS, SandboxToolEnv
from rlframe.errors import InfraFault, PolicyFault, TaskFault
from rlframe.interfaces import Score, StepResult, ToolEnv, WordingEnv
from rlframe.sandbox.protocol import Sandbox

SMALL_OUTPUT = ToolSettings(workdir="/workspace", max_chars=200, timeout_s=10)


async def pass_if_done(sandbox: Sandbox, submitted: str) -> Score:
    try:
        content = await sandbox.read("/workspace/done")
    except FileNotFoundError:
        return Score(0.0, {"submitted": submitted})
    return Score(1.0, {"content": content.decode()})


def an_env(opens: Any = None, **more: Any) -> SandboxToolEnv:
    # Local: no policy writes these commands, the test does.
    given = {"settings": SMALL_OUTPUT, "grade": pass_if_done, **more}
    return SandboxToolEnv(
        messages=[{"role": "user", "content": "Make a file 'done'."}],
        opens=opens or (lambda: open_local(SMALL)),
        **given,
    )


def call(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    return {"id": f"c{number}", "name": name, "arguments": arguments}


async def act(env: SandboxToolEnv, *calls: Mapping[str, Any], content: str = "") -> StepResult:
    message = {"role": "assistant", "content": content, "tool_calls": list(calls)}
    return await env.act(message)


async def say(env: SandboxToolEnv, name: str, **arguments: Any) -> str:
    result = await act(env, call(name, arguments))
    assert not result.done
    text: str = result.messages[0]["content"]
    return text


async def test_a_whole_attempt() -> None:
    env = an_env()
    assert isinstance(env, ToolEnv)
    assert {t["name"] for t in env.tools} == {
        "bash", "python", "read", "write", "edit", "search", "submit",
    }  # fmt: skip
    assert (await env.start())[0]["content"] == "Make a file 'done'."
    assert await say(env, "write", path="a.txt", content="one\ntwo\n") == "Wrote 8 bytes to a.txt."
    assert await say(env, "read", path="a.txt") == "     1  one\n     2  two"
    assert await say(env, "edit", path="a.txt", old="two", new="2") == "Replaced 1 in a.txt."
    assert await say(env, "search", pattern="^[0-9]$") == "./a.txt:2:2\n"
    assert await say(env, "search", pattern="nothing") == "[no matches]"
    assert await say(env, "bash", command="cat a.txt; exit 3") == "one\n2\n[exit code 3]"
    assert await say(env, "bash", command="true") == "[no output]"
    assert await say(env, "python", code="print(6 * 7)") == "42\n"
    result = await act(env, call("bash", {"command": "echo x > done"}), call("submit", {}, 1))
    assert (result.done, result.reward) == (True, 1.0)
    assert [c["tool"] for c in result.info["tool_calls"]] == [
        "write", "read", "edit", "search", "search", "bash", "bash", "python", "bash",
    ]  # fmt: skip
    assert all(c["seconds"] >= 0 for c in result.info["tool_calls"])
    assert result.info["call_errors"] == 0
    await env.close()


async def test_an_answer_without_calls_ends_it() -> None:
    env = an_env()
    await env.start()
    result = await act(env, content="I am done.")
    assert (result.done, result.reward, result.info["submitted"]) == (True, 0.0, "I am done.")
    await env.close()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("bash", {"command": "cat a"}, "cat: a: No such file or directory"),
        ("bash", {"command": "true"}, ""),
        ("python", {"code": "import sys; sys.exit('no')"}, "no"),
        ("read", {"path": "a"}, "a: No such file or directory"),
        ("write", {"path": "f/a", "content": "x"}, "f/a: File exists"),
        ("edit", {"path": "f", "old": "x", "new": "y"}, "whatever stands in the way"),
        ("search", {"pattern": "x"}, ""),
        ("bsh", {"command": "cat a"}, "cat: a: No such file or directory"),
        ("read", {"file": "a"}, "a: No such file or directory"),
    ],
)
async def test_a_stopped_call_is_answered_as_one_that_fails(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    """What the tool says by itself to such a call, and what it makes of a guard's words."""
    env = an_env()
    assert isinstance(env, WordingEnv)
    await env.start()
    await say(env, "write", path="f", content="nothing\n")
    assert env.worded(call(name, arguments), said) == await say(env, name, **arguments)
    await env.close()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("bsh", {"command": "ls"}, "Error: there is no tool 'bsh'. Did you mean 'bash'?"),
        ("bash", {}, "Error: bash needs the argument 'command'."),
        ("bash", {"cmd": "ls"}, "Error: bash has no argument 'cmd'; it has command, timeout_s."),
        ("bash", {"command": ["ls"]}, "Error: bash: 'command' must be of type string."),
        ("bash", {"command": "ls", "timeout_s": True}, "must be of type number"),
        ("bash", "no json", "Error: the arguments of bash are no JSON"),
        ("bash", 7, "Error: the arguments of bash must be an object."),
        ("bash", None, "Error: the arguments of bash must be an object."),
        ("bash", {"command": "a\0b"}, "null byte"),
        ("read", {"path": "nowhere"}, "Error: nowhere: No such file or directory"),
        ("read", {"path": "."}, "Error: .: Is a directory"),
        ("read", {"path": "a\0b"}, "Error: a\0b: "),
        ("edit", {"path": "f", "old": "x", "new": "y"}, "Error: 'old' stands 2 times in f"),
        ("edit", {"path": "f", "old": "q", "new": "y"}, "Error: 'old' does not stand in f."),
        ("edit", {"path": "f", "old": "", "new": "y"}, "Error: 'old' is empty."),
        ("submit", {"answer": 7}, "Error: 'answer' must be a text."),
    ],
)
async def test_wrong_calls_are_answered(name: str, arguments: Any, said: str) -> None:
    env = an_env()
    await env.start()
    await say(env, "write", path="f", content="x x")
    result = await act(env, call(name, arguments))
    assert not result.done
    assert said in result.messages[0]["content"]
    await env.close()


async def test_arguments_as_json_text() -> None:
    env = an_env()
    await env.start()
    result = await act(env, call("bash", json.dumps({"command": "echo 1"})))
    assert result.messages[0]["content"] == "1\n"
    await env.close()


async def test_long_output_is_cut_with_a_notice_and_bytes_are_shown() -> None:
    env = an_env()
    await env.start()
    text = await say(env, "bash", command="seq 1000")
    assert text.startswith("1\n2\n")
    assert "characters left out ...]" in text
    assert "bytes were dropped]" in text
    assert len(text) < 330
    result = await say(env, "bash", command=r"printf 'a\377b'")
    assert result == "a\\xffb"
    log = env.log[0]
    assert log["cut_chars"] > 3000
    await env.close()


async def test_edits_keep_bytes_that_are_no_utf_8() -> None:
    env = an_env()
    await env.start()
    await say(env, "bash", command=r"printf '\377old\376' > f")
    await say(env, "edit", path="f", old="old", new="new")
    assert await say(env, "bash", command="od -An -tx1 f") == " ff 6e 65 77 fe\n"
    await env.close()


async def test_time_that_runs_out_is_said() -> None:
    env = an_env()
    await env.start()
    text = await say(env, "bash", command="echo a; sleep 1000", timeout_s=0.3)
    assert text == "a\n[ended: its time was up]\n[exit code 137]"
    result = await act(env, call("submit", {}))
    assert result.info["limits_hit"] == ["time"]
    await env.close()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "1", None, True])
async def test_a_verifier_that_gives_no_number_is_the_tasks_fault(wrong: Any) -> None:
    async def grade(sandbox: Sandbox, submitted: str) -> Score:
        return Score(wrong)

    env = an_env(grade=grade)
    await env.start()
    with pytest.raises(TaskFault, match="must be a finite number"):
        await act(env, call("submit", {}))
    await env.close()


class Broken:
    """A stand-in for a sandbox that is lost."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def exec(self, *_: Any, **__: Any) -> Any:
        raise self.error

    async def close(self) -> None:
        pass


async def test_a_lost_sandbox_by_whose_fault_it_is() -> None:
    async def opens(error: Exception) -> Any:
        return Broken(error)

    env = an_env(lambda: opens(PolicyFault("it ended itself")))
    await env.start()
    result = await act(env, call("bash", {"command": "boom"}))
    assert (result.done, result.reward, result.info["fault"]) == (True, 0.0, "policy")
    env = an_env(lambda: opens(InfraFault("the machine is gone")))
    await env.start()
    with pytest.raises(InfraFault):
        await act(env, call("bash", {"command": "boom"}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([t.name for t in ALL_TOOLS if t.name != "submit"]) | st.text(max_size=5)
KEYS = st.sampled_from(["path", "content", "old", "new", "pattern", "first_line", "lines", "all"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=NAMES, arguments=JSON | st.dictionaries(KEYS, JSON, max_size=4))
async def test_no_call_raises(name: str, arguments: Any) -> None:
    env = an_env()
    await env.start()
    result = await act(env, call(name, arguments))
    assert isinstance(result.messages[0]["content"], str)
    await env.close()


@given(st.text(), st.integers(2, 100))
def test_cut_keeps_both_ends(text: str, limit: int) -> None:
    shown, missing = cut(text, limit)
    if len(text) <= limit:
        assert (shown, missing) == (text, 0)
    else:
        half = limit // 2
        assert (shown[:half], shown[-half:]) == (text[:half], text[-half:])
        assert missing == len(text) - 2 * half


@given(st.binary())
def test_any_bytes_are_a_text(output: bytes) -> None:
    text_of(output).encode("utf-8")


@needs_bubblewrap
async def test_in_bubblewrap_with_odd_arguments() -> None:
    env = an_env(lambda: open_bwrap(SMALL))
    await env.start()
    for arguments in ({"command": "a\0b"}, {"command": "echo \ud800"}, {"command": "x" * 200_000}):
        result = await act(env, call("bash", arguments))
        assert not result.done
    assert await say(env, "python", code="print('\ud800')") is not None
    assert await say(env, "bash", command="cd /tmp; pwd") == "/tmp\n"
    assert await say(env, "bash", command="pwd") == "/workspace\n"
    await env.close()
