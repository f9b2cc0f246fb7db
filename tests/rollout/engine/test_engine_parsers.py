"""Parsers: what well-formed turns say, that nothing is lost of the others, and that nothing raises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, save_tokenizer
from family_templates import FAMILY_TEMPLATES, said, save_family_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from rlframe.errors import UserError
from rollout.engine.parser_check import parser_for
from rollout.engine.parsers import MARKS, TurnParser
from rollout.renderer import Renderer

TOOLS: tuple[Mapping[str, Any], ...] = (
    {
        "name": "write",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "mode": {"type": "integer"},
                "lines": {"type": "array", "items": {"type": "string"}},
                "options": {"type": "object"},
                "force": {"type": "boolean"},
            },
        },
    },
    {"name": "wait", "description": "", "parameters": {"type": "object", "properties": {}}},
)
PARSERS = {
    "qwen3": ("qwen25", "qwen3", False),
    "qwen3.5": ("qwen3_coder", "qwen3", True),
    "glm4.5": ("glm45", "glm45", False),
    "glm4.7": ("glm47", "glm45", True),
}
"""By family: both parsers, and whether the prompt opens the reasoning."""
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1).filter(
    lambda text: text == text.strip()
)
# XML formats can't tell a string from nothing, from `null`, or from one with a newline at an end; SGLang's
# glm45 writes the strings `true` and `false` with a capital.
STRING = TEXT.filter(lambda text: text.lower() not in ("null", "true", "false"))
VALUES = {
    "path": STRING,
    "mode": st.integers(-(10**6), 10**6),
    "lines": st.lists(STRING, max_size=3),
    "options": st.dictionaries(st.sampled_from("ab"), st.one_of(STRING, st.integers()), max_size=2),
    "force": st.booleans(),
}
ARGUMENTS = st.fixed_dictionaries({}, optional=VALUES)
CALL = st.one_of(
    ARGUMENTS.map(lambda arguments: {"name": "write", "arguments": arguments}),
    st.just({"name": "wait", "arguments": {}}),
)


@pytest.fixture(scope="module", params=sorted(PARSERS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def parser(family: str) -> TurnParser:
    calls, reasoning, opens = PARSERS[family]
    return TurnParser(tool_call_parser=calls, reasoning_parser=reasoning, opens_reasoning=opens)


@given(reasoning=TEXT, content=st.one_of(st.just(""), TEXT), calls=st.lists(CALL, max_size=3))
def test_well_formed_turns_are_read_whole(
    family: str, parser: TurnParser, reasoning: str, content: str, calls: Sequence[Any]
) -> None:
    read = parser.read(said(family, reasoning=reasoning, content=content, calls=calls), TOOLS)
    message = dict(read.message)
    numbered = [{"id": f"call_{n}", **call} for n, call in enumerate(calls)]
    assert read.malformed == ()
    assert message.pop("tool_calls", []) == numbered
    assert message == {"role": "assistant", "content": content, "reasoning_content": reasoning}


PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_call>\n", "\n</tool_call>"),
        *("<function=write>", "</function>", "<parameter=path>", "</parameter>", "<function="),
        *("write", "wait", "nothing_like_it", "<arg_key>", "</arg_key>", "<arg_value>"),
        *("</arg_value>", "path", "mode", '{"name": "write", "arguments": {"mode": 1}}'),
        *('{"name": "rm", "arguments": {}}', '{"name": "write", "arguments": [1]}', '"text"'),
        *('{"name": "write", "argu', '{"name": 7}', "[1]", "null", "NaN", "1e999", '"\\ud800"'),
        *('{"name": "write", "arguments": {"path": "\\ud800"}}', "\n", " ", "[" * 3000, "{"),
        *('{"name": "write", "arguments": {"mode": NaN}}', "9" * 5000),
    ]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=14).map("".join))
def test_nothing_raises_and_nothing_is_lost(parser: TurnParser, text: str) -> None:
    read = parser.read(text, TOOLS)
    message = read.message
    json.dumps(message.get("tool_calls"), allow_nan=False, ensure_ascii=False).encode()
    assert all(call["name"] in ("write", "wait") for call in message.get("tool_calls", ()))
    assert all(isinstance(call["arguments"], dict) for call in message.get("tool_calls", ()))
    kept = message.get("reasoning_content", "") + message["content"]
    if not message.get("tool_calls"):
        assert bare(kept) == bare(text)
    else:  # a call leaves with its marks, and with nothing else
        outside = re.sub(r"<tool_call>.*?</tool_call>", "", text, flags=re.DOTALL)
        assert len(bare(kept)) >= len(bare(outside))


def bare(text: str) -> str:
    return re.sub(r"</?think>|\s+", "", text)


@pytest.mark.parametrize("name", sorted(MARKS))
@given(text=st.lists(PIECES, max_size=10).map("".join))
def test_no_parser_with_marks_raises(name: str, text: str) -> None:
    parser = TurnParser(tool_call_parser=name)
    message = parser.read(text, TOOLS).message
    if not message.get("tool_calls"):
        assert message["content"] == text


@pytest.mark.parametrize("name", ["llama3", "mistral", "pythonic", "deepseekv3", "kimi_k2"])
@given(text=st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=10).map("".join))
def test_other_formats_do_not_raise_either(name: str, text: str) -> None:
    assert TurnParser(tool_call_parser=name).read(text, TOOLS).message["role"] == "assistant"


GOOD = {"name": "write", "arguments": {"mode": 1}}


def test_text_next_to_calls_is_kept(family: str, parser: TurnParser) -> None:
    first = said(family, reasoning="hm", content="one", calls=[GOOD])
    second = said(family, calls=[GOOD]).partition("</think>")[2].lstrip("\n")
    read = parser.read(f"{first}\ntwo\n{second}\nthree", TOOLS)
    assert read.message["content"].split() == ["one", "two", "three"]
    assert [call["id"] for call in read.message["tool_calls"]] == ["call_0", "call_1"]
    assert read.malformed == ()


def test_one_bad_call_does_not_spoil_the_others(family: str, parser: TurnParser) -> None:
    text = said(family, reasoning="hm", calls=[GOOD, {"name": "rm", "arguments": {}}, GOOD])
    read = parser.read(text, TOOLS)
    assert [call["name"] for call in read.message["tool_calls"]] == ["write", "write"]
    assert "<tool_call>" in read.message["content"]
    assert "rm" in read.message["content"]
    assert len(read.malformed) == 1


def test_a_cut_call_is_no_call(family: str, parser: TurnParser) -> None:
    whole = said(family, reasoning="hm", content="so", calls=[GOOD])
    end = whole.index("<tool_call>") + len("<tool_call>\n")
    for cut in range(end, len(whole)):
        read = parser.read(whole[:cut], TOOLS)
        assert "tool_calls" not in read.message
        assert read.malformed
        assert bare(read.message["content"]) == bare(whole[:cut].partition("</think>")[2])


def test_cut_reasoning_stays_reasoning(family: str, parser: TurnParser) -> None:
    text = said(family, reasoning="first this, then", content="so").partition("</think>")[0]
    read = parser.read(text, TOOLS)
    assert read.message["reasoning_content"] == "first this, then"
    assert read.message["content"] == ""


def test_without_tools_a_call_is_text(family: str, parser: TurnParser) -> None:
    text = said(family, reasoning="hm", content="so", calls=[GOOD])
    assert "tool_calls" not in parser.read(text, ()).message
    assert "<tool_call>" in parser.read(text, ()).message["content"]


def test_tools_that_make_no_sense_are_said_to_be_wrong() -> None:
    read = TurnParser(tool_call_parser="qwen25").read("hi", ({"description": "no name"},))
    assert read.message["content"] == "hi"
    assert "the tools are wrong" in read.malformed[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"tool_call_parser": "qwen26"}, "rollout.tool_call_parser: .* 'qwen26'.*mean 'qwen25'"),
        ({"reasoning_parser": "qwen33"}, "rollout.reasoning_parser: .* 'qwen33'.*mean 'qwen3'"),
    ],
)
def test_unknown_names(names: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TurnParser(**names)


@pytest.mark.parametrize("name", sorted(FAMILY_TEMPLATES))
def test_only_parsers_that_read_the_templates_own_format_are_taken(
    tmp_path: Path, name: str
) -> None:
    renderer = Renderer(str(save_family_tokenizer(tmp_path, FAMILY_TEMPLATES[name])))
    calls, reasoning, _ = PARSERS[name]
    parser = parser_for(renderer, tool_call_parser=calls, reasoning_parser=reasoning)
    read = parser.read(said(name, reasoning="hm", content="so", calls=[GOOD]), TOOLS)
    assert read.message["tool_calls"] == [{"id": "call_0", **GOOD}]
    assert read.message["reasoning_content"] == "hm"
    wrong = "glm45" if calls != "glm45" else "qwen25"
    with pytest.raises(UserError, match=rf"{wrong} can't read a call .* Try {calls}\."):
        parser_for(renderer, tool_call_parser=wrong, reasoning_parser="")
    if not renderer.opens_reasoning:
        with pytest.raises(UserError, match="every answer for reasoning"):
            parser_for(renderer, tool_call_parser="", reasoning_parser="deepseek-r1")


def test_a_template_that_hides_tools_is_refused(tmp_path: Path) -> None:
    renderer = Renderer(str(save_tokenizer(tmp_path, CHATML)))
    with pytest.raises(UserError, match="does not write tools"):
        parser_for(renderer, tool_call_parser="qwen25", reasoning_parser="")


def test_sglang_is_imported_only_where_a_parser_is_asked_for() -> None:
    program = (
        "import sys; from rollout.engine.parsers import TurnParser;"
        "import rollout.worker;"
        "print(TurnParser().read('<think>a', ()).message['content'], 'sglang' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["<think>a", "False"], done.stderr
