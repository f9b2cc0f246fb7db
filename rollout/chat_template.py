"""A Hugging Face tokenizer directory, read without `transformers`: ids, text, and its chat template.

`tokenizers` and Jinja are all that it takes. Importing `transformers` costs a worker many seconds and
half a gigabyte. A test compares every answer with that of `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from rlframe.errors import TaskFault, UserError
from rlframe.types import Message
from rollout.segments import SegmentEncoder
from rollout.template_input import template_message, template_tools

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTokenizer:
    """Raises UserError for a directory without tokenizer.json or chat template. `template_args` are
    variables for the template, by its own names."""

    def __init__(self, directory: str, template_args: Mapping[str, Any] | None = None) -> None:
        path = Path(directory)
        if not (path / "tokenizer.json").is_file():
            raise UserError(f"model.tokenizer: '{directory}' has no tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._encoder = SegmentEncoder(self._tokenizer)
        config = _json(path / "tokenizer_config.json")
        ends = _json(path / "generation_config.json").get("eos_token_id") or []
        self._generation_ends: list[int] = ends if isinstance(ends, list) else [ends]
        self._special = {
            name: _content(config[name]) for name in SPECIAL_NAMES if config.get(name) is not None
        }
        self._arguments = dict(template_args or {})
        self.template = _template_source(path, config)
        if not self.template:
            raise UserError(
                f"model.tokenizer: '{directory}' has no chat template: add `chat_template` to its "
                "tokenizer_config.json, or a file chat_template.jinja"
            )
        try:
            self._template = _environment().from_string(self.template)
        except jinja2.TemplateError as error:
            raise UserError(
                f"model.tokenizer: the chat template of '{directory}' is wrong: {error}"
            ) from None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return 1 + int(max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    def variables(self) -> frozenset[str]:
        """Names that the template reads from outside: what `template_args` may set, and the usual ones."""
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(self.template)))

    def special_tokens(self) -> dict[str, int]:
        """Text and id of every token that is never cut out of longer text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def end_of_text_ids(self) -> list[int]:
        """At which the model itself stops: of generation_config.json, and the `eos_token`."""
        eos = self.special_tokens().get(self._special.get("eos_token", ""))
        return [*self._generation_ends, *([] if eos is None else [eos])]

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Messages and tools in the neutral form (`rollout.chat`). TaskFault for messages that the
        template refuses."""
        try:
            return self._template.render(
                messages=[template_message(m) for m in messages],
                tools=template_tools(tools),
                documents=None,
                add_generation_prompt=generation_prompt,
                **(self._special | self._arguments),
            )
        except Exception as error:  # a template is outside code
            raise TaskFault(f"the chat template refuses the messages: {error}") from error

    def encode(self, text: str) -> list[int]:
        """TaskFault for text that isn't Unicode (half a surrogate pair, as JSON can hold it)."""
        try:
            return self._encoder.encode(text)
        except TypeError as error:
            raise TaskFault(f"the tokenizer refuses the text: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens stay in the text."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


def _template_source(path: Path, config: dict[str, Any]) -> str:
    """In the order in which `transformers` looks."""
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text()
    given = config.get("chat_template", "")
    if isinstance(given, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in given}
        given = by_name.get("default", "")
    return str(given or "")


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which templates mark what the assistant says: here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """With the options, filters and functions that `transformers` gives to templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
