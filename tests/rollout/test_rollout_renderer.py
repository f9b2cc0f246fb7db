"""The renderer against transformers, and bridging against whole renderings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import BRIDGED, CHATML, QWEN3, REFUSED, save_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from rlframe.errors import TaskFault, UserError
from rlframe.types import Demonstration, Message
from rollout.chat_template import ChatTokenizer
from rollout.renderer import CannotBridge, Renderer
from rollout.template_probe import STAND_IN

TEXT = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=20)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module", params=sorted(BRIDGED))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp(request.param), BRIDGED[request.param])


@pytest.fixture(scope="module")
def renderer(directory: Path) -> Renderer:
    return Renderer(str(directory))


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


CONVERSATIONS: list[list[Message]] = [
    [user("1 + 1?")],
    [{"role": "system", "content": "Be <b>brief</b> & kind."}, user("  wide \n")],
    [user("in"), assistant("3"), user("No.")],
    [user("a"), assistant("b"), {"role": "tool", "content": "c"}, {"role": "tool", "content": "d"}],
    [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_are_those_of_transformers(
    renderer: Renderer, reference: Any, conversation: list[Message]
) -> None:
    expected = reference.apply_chat_template(
        [dict(m) for m in conversation], add_generation_prompt=True, return_dict=False
    )
    assert renderer.prompt(conversation) == expected
    assert renderer.vocab_size == len(reference)


@given(st.lists(st.integers(0, 260), max_size=20))
def test_text_is_that_of_transformers(renderer: Renderer, reference: Any, ids: list[int]) -> None:
    if ids and ids[-1] == renderer.end_of_turn:
        ids.append(0)
    assert renderer.text(ids) == reference.decode(ids)


@given(question=TEXT, answers=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_bridged_ids_are_those_of_a_whole_rendering(
    renderer: Renderer, reference: Any, question: str, answers: list[tuple[str, str]]
) -> None:
    """For answers whose text round-trips, and but for reasoning that templates rewrite."""
    conversation = [user(question)]
    ids = renderer.prompt(conversation)
    for answer, feedback in answers:
        said = "x" + answer.strip() + "x"  # templates may strip an answer
        ids += [*reference.encode(said, add_special_tokens=False), renderer.end_of_turn]
        ids += renderer.bridge([user(feedback)], last_id=ids[-1])
        conversation += [assistant(said), user(feedback)]
    whole = reference.apply_chat_template(
        [dict(m) for m in conversation], add_generation_prompt=True, return_dict=False
    )
    assert ids == whole


def test_a_cut_turn_is_closed_by_the_bridge(renderer: Renderer) -> None:
    new = [user("Go on.")]
    ended = renderer.bridge(new, last_id=renderer.end_of_turn)
    for last_id in (None, 7):
        assert renderer.bridge(new, last_id=last_id) == [renderer.end_of_turn, *ended]


def test_text_leaves_out_the_end_of_turn_and_nothing_else(renderer: Renderer) -> None:
    end = renderer.end_of_turn
    four = renderer.prompt([user("4")])
    four = four[four.index(renderer._tokenizer.encode("4")[0])]
    assert renderer.text([four, end]) == "4"
    assert renderer.text([four]) == "4"
    assert renderer.text([end]) == ""
    assert renderer.text([]) == ""
    assert renderer.text([four, end, four, end]) == "4<|im_end|>4"


def test_demonstrations_train_answers_and_their_ends(renderer: Renderer, reference: Any) -> None:
    shown = Demonstration(
        (user("2+2?"), assistant("5"), user("Wrong."), assistant("four")), untrained=(1,)
    )
    ids, mask = renderer.demonstration(shown)
    assert reference.decode(ids[mask].tolist()) == "four<|im_end|>"
    assert not mask[0]
    prompt = renderer.prompt([user("2+2?")])
    assert ids[: len(prompt)].tolist() == prompt
    assert reference.decode(ids.tolist()).count("<|im_end|>") == 4
    both = Demonstration(shown.messages)
    assert reference.decode(
        renderer.demonstration(both)[0][renderer.demonstration(both)[1]].tolist()
    ) == ("5<|im_end|>four<|im_end|>")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_templates_that_can_not_be_bridged_are_refused(tmp_path: Path, name: str) -> None:
    template, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        Renderer(str(save_tokenizer(tmp_path, template)))


def test_the_end_of_turn_is_the_templates_and_not_the_eos(tmp_path: Path) -> None:
    renderer = Renderer(str(save_tokenizer(tmp_path, CHATML, eos="<|endoftext|>")))
    assert renderer.text([renderer.end_of_turn]) == ""
    assert renderer._tokenizer.decode([renderer.end_of_turn]) == "<|im_end|>"


def test_a_template_in_its_own_file_or_by_name(tmp_path: Path) -> None:
    directory = save_tokenizer(tmp_path, "")
    with pytest.raises(UserError, match="has no chat template"):
        Renderer(str(directory))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tools", "template": "x"},
        {"name": "default", "template": CHATML},
    ]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    by_name = Renderer(str(directory)).prompt([user("a")])
    (directory / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>", "<|role_end|>"))
    assert Renderer(str(directory)).prompt([user("a")]) != by_name
    with pytest.raises(UserError, match="has no tokenizer"):
        Renderer(str(tmp_path / "nowhere"))


def test_messages_that_the_template_refuses_are_the_tasks_fault(tmp_path: Path) -> None:
    renderer = Renderer(str(save_tokenizer(tmp_path, CHATML)))
    for messages in ([{"role": "user"}], [{"role": "user", "content": None}]):
        with pytest.raises(TaskFault, match="refuses the messages"):
            renderer.prompt(messages)
        with pytest.raises(TaskFault, match="refuses the messages"):
            renderer.bridge(messages, last_id=None)
    with pytest.raises(TaskFault, match="not JSON"):
        renderer.bridge([{"role": "user", "content": object()}], last_id=None)


def test_a_template_may_not_run_code(tmp_path: Path) -> None:
    evil = CHATML + "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match="unsafe"):
        Renderer(str(save_tokenizer(tmp_path, evil)))


def test_the_stand_in_is_text_that_every_tokenizer_knows(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(str(save_tokenizer(tmp_path, CHATML)))
    assert tokenizer.decode(tokenizer.encode(STAND_IN)) == STAND_IN


# What a template does with a history is found out at the start, or for a given one.
NUMBERED = REFUSED["numbered"][0]
DROPS_REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content and loop.last %}{{ '[' + m.reasoning_content + ']' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HIDES_RESULTS = (
    "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\n' + m.content"
    " + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NEEDS_CALL = (
    "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('a result without a call') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + (m.tool_calls | tojson if m.tool_calls else '')"
    " + '<|im_end|>\n' }}{% endfor %}{{ tools | tojson }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_that_never_just_goes_on_is_rendered_whole_where_that_is_wanted(
    tmp_path: Path,
) -> None:
    renderer = Renderer(str(save_tokenizer(tmp_path, NUMBERED)), must_bridge=False)
    assert "otherwise" in renderer.cannot_bridge
    assert renderer.prompt([user("a"), assistant("b"), user("c")])
    with pytest.raises(CannotBridge, match="otherwise"):
        renderer.bridge([user("c")], last_id=None)


def test_an_unknown_template_is_checked_on_the_history_at_hand(tmp_path: Path) -> None:
    renderer = Renderer(str(save_tokenizer(tmp_path, DROPS_REASONING)))
    assert renderer.family.name == "generic"
    new = [user("c")]
    plain = [user("a"), assistant("b")]
    bridged = renderer.bridge(new, last_id=None, history=plain)
    assert bridged == renderer.bridge(new, last_id=None)
    assert renderer.prompt([*plain, *new])[-len(bridged) :] == bridged
    reasoned = [user("a"), {**assistant("b"), "reasoning_content": "hm"}]  # not between <think>
    with pytest.raises(CannotBridge, match="earlier messages otherwise"):
        renderer.bridge(new, last_id=None, history=reasoned)


def test_reasoning_that_an_unknown_template_drops_is_no_reason_to_render_whole(
    tmp_path: Path,
) -> None:
    thinks = DROPS_REASONING.replace("'['", "'<think>'").replace("']'", "'</think>'")
    renderer = Renderer(str(save_tokenizer(tmp_path, thinks)))
    assert renderer.family.name == "generic"
    history = [user("a"), {**assistant("b"), "reasoning_content": "hm"}]
    bridged = renderer.bridge([user("c")], last_id=None, history=history)
    assert bridged == renderer.bridge([user("c")], last_id=None)


def test_results_of_tools_are_never_silently_left_out(tmp_path: Path) -> None:
    result: Message = {"role": "tool", "content": "42", "name": "f"}
    renderer = Renderer(str(save_tokenizer(tmp_path / "hides", HIDES_RESULTS)))
    assert not renderer.shows_tools
    with pytest.raises(CannotBridge, match="does not show a tool's result"):
        renderer.bridge([result], last_id=None)
    with pytest.raises(TaskFault, match="leaves out the results"):
        renderer.prompt([user("a"), assistant("b"), result])


def test_a_template_that_wants_the_call_before_its_result_is_rendered_whole(tmp_path: Path) -> None:
    result: Message = {"role": "tool", "content": "42", "name": "f"}
    renderer = Renderer(str(save_tokenizer(tmp_path, NEEDS_CALL)), must_bridge=False)
    call = {"id": "c", "name": "f", "arguments": {}}
    history: list[Message] = [user("a"), {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(CannotBridge):
        renderer.bridge([result], last_id=None, history=history)
    assert "42" in renderer._tokenizer.decode(renderer.prompt([*history, result]))


def test_the_models_own_ends_of_text_end_a_turn(tmp_path: Path) -> None:
    directory = save_tokenizer(tmp_path, CHATML, eos="<|endoftext|>")
    plain = Renderer(str(directory))
    end_of_text = plain._tokenizer.special_tokens()["<|endoftext|>"]
    assert plain.stop_token_ids == (plain.end_of_turn, end_of_text)
    for given_ids, expected in ((7, (7,)), ([plain.end_of_turn, 9], (9,))):
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": given_ids}))
        stops = Renderer(str(directory)).stop_token_ids
        assert stops == (plain.end_of_turn, *expected, end_of_text)


def test_variables_of_the_template(tmp_path: Path) -> None:
    directory = str(save_tokenizer(tmp_path, QWEN3))
    off = Renderer(directory, template_args={"enable_thinking": False})
    opening = Renderer(directory).prompt([user("a")])
    assert off._tokenizer.decode(off.prompt([user("a")])[len(opening) :]) == (
        "<think>\n\n</think>\n\n"
    )


def test_whatever_a_template_does_with_bad_messages_is_the_tasks_fault(tmp_path: Path) -> None:
    divides = CHATML + "{% if messages|length > 9 %}{{ 1 // 0 }}{% endif %}"
    renderer = Renderer(str(save_tokenizer(tmp_path, divides)))
    with pytest.raises(TaskFault, match="refuses the messages"):
        renderer.prompt([user("a")] * 10)
    for messages in ([user("\ud800")], [{"role": "tool", "content": "\ud800", "name": "f"}]):
        with pytest.raises(TaskFault, match="refuses the text"):
            renderer.prompt(messages)
        with pytest.raises(TaskFault, match="surrogates not allowed"):
            renderer.bridge(messages, last_id=None)
    for bad in (
        [{"role": "assistant", "tool_calls": [1]}],
        [{"role": "assistant", "tool_calls": 5}],
    ):
        with pytest.raises(TaskFault):
            renderer.prompt(bad)  # type: ignore[arg-type]


def test_long_messages_are_not_remembered(renderer: Renderer) -> None:
    long = [user("x" * 5000)]
    renderer._cached.cache_clear()
    assert renderer.bridge(long, last_id=None) == renderer.bridge(long, last_id=None)
    assert renderer._cached.cache_info().currsize == 0
    assert renderer.bridge([user("x")], last_id=None) == renderer.bridge([user("x")], last_id=None)
    assert renderer._cached.cache_info().currsize == 1
