"""What a word of a shell command stands for: quotes, variables, substitutions, braces, wildcards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.guard.paths import UNKNOWN, active, plain

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_WORDS = 24
"""Alternatives of one word; more are not followed."""
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|0?[0-7]{1,3}|.)", re.S)
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\w\.\.\w)\}")
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\033", "\n": ""}


def text_of(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def unescaped(text: str) -> str:
    """ANSI C escapes, as in $'...', `printf` and `echo -e`."""

    def one(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] in "xu" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] in "01234567":
            return chr(int(code, 8) & 0x1FF)
        return _NAMED.get(code, code)

    return _ESCAPE.sub(one, text)


@dataclass(slots=True)
class Expander:
    """expander.words(node): every word that the node may become."""

    variables: Mapping[str, tuple[str, ...]]
    run: Callable[[Node], str | None]
    """Output of a command substitution, where it is known."""
    peeked: Callable[[str], None]
    """A variable is read that the agent has not set."""

    def words(self, node: Node) -> list[str]:
        alternatives = self._expanded(node)
        if node.type in ("word", "concatenation", "command_name"):
            alternatives = [w for a in alternatives for w in braces(a)]
        return alternatives[:MAX_WORDS]

    def one(self, node: Node) -> str:
        return (self.words(node) or [""])[0]

    def fields(self, node: Node) -> list[str]:
        """As `words`, where an unquoted substitution or variable is split at white space."""
        words = self.words(node)
        if node.type in ("command_substitution", "simple_expansion", "expansion"):
            return [part for word in words for part in word.split()][:MAX_WORDS]
        return words

    def _expanded(self, node: Node) -> list[str]:
        kind = node.type
        if kind in ("word", "number", "extglob_pattern", "regex"):
            return [self._bare(text_of(node))]
        if kind == "raw_string":
            return [text_of(node)[1:-1]]
        if kind == "ansi_c_string":
            return [unescaped(text_of(node)[2:-1])]
        if kind in ("string", "translated_string"):
            return self._joined(node, start=node.start_byte + 1, end=node.end_byte - 1)
        if kind in ("concatenation", "command_name"):
            return self._joined(node, start=node.start_byte, end=node.end_byte)
        if kind == "string_content":
            return [re.sub(r'\\(["\\$`\n])', r"\1", text_of(node))]
        if kind in ("simple_expansion", "expansion"):
            return self._variable(node)
        if kind == "command_substitution":
            output = self.run(node)
            return [UNKNOWN if output is None else output.rstrip("\n")]
        if kind == "process_substitution":
            self.run(node)
            return [UNKNOWN]
        if kind == "arithmetic_expansion":
            return [UNKNOWN]
        if kind == "array":
            return [w for child in node.named_children for w in self.words(child)]
        return [self._bare(text_of(node))]

    @staticmethod
    def _bare(text: str) -> str:
        if "\\" not in text:
            return active(text)
        parts = re.split(r"\\(.|\n)", text, flags=re.S)
        return "".join(p if i % 2 else active(p) for i, p in enumerate(parts)).replace("\n", "")

    def _joined(self, node: Node, *, start: int, end: int) -> list[str]:
        """All combinations of the parts; what the grammar drops between them (blanks) is kept."""
        whole = node.text or b""
        found = [""]
        at = start
        for child in node.children:
            if child.start_byte < start or child.end_byte > end:
                continue
            gap = whole[at - node.start_byte : child.start_byte - node.start_byte].decode(
                "utf-8", "replace"
            )
            parts = self._expanded(child) if child.is_named else [text_of(child)]
            found = [f + gap + part for f in found for part in parts][:MAX_WORDS]
            at = child.end_byte
        return found

    def _variable(self, node: Node) -> list[str]:
        names = [c for c in node.children if c.type in ("variable_name", "special_variable_name")]
        if not names:
            return [UNKNOWN]
        name = text_of(names[0])
        values = list(self.variables.get(name, ()))
        if name not in self.variables:
            self.peeked(name)
        if node.type == "simple_expansion":
            return values or [UNKNOWN]
        return self._modified(node, names[0], values)

    def _modified(self, node: Node, name: Node, values: list[str]) -> list[str]:
        rest = [c for c in node.children if c.start_byte >= name.end_byte and c.type != "}"]
        if not rest:
            return values or [UNKNOWN]
        operator = text_of(rest[0])
        arguments = [self.one(child) for child in rest[1:] if child.is_named]
        if operator in (":-", "-", ":=", "="):
            return values or arguments or [""]
        if operator in (":+", "+"):
            return arguments or [""]
        if operator == ":" and values and all(a.lstrip("-").isdigit() for a in arguments):
            begin, *length = (int(a) for a in arguments)
            return [v[begin:][: length[0] if length else None] for v in values]
        if operator in ("/", "//") and values and arguments:
            old, new = plain(arguments[0]), arguments[1] if len(arguments) > 1 else ""
            return [v.replace(old, new, -1 if operator == "//" else 1) for v in values]
        if operator in ("%", "%%", "#", "##") and values and arguments:
            cut = plain(arguments[0])
            trim = str.removesuffix if operator[0] == "%" else str.removeprefix
            return [trim(v, cut) for v in values]
        return [UNKNOWN]


def braces(word: str) -> list[str]:
    """`a{b,c}d` is `abd` and `acd`."""
    found = _BRACES.search(word)
    if not found:
        return [word]
    inner = found[1]
    if "," in inner:
        options = inner.split(",")
    else:
        first, last = ord(inner[0]), ord(inner[-1])
        options = [chr(c) for c in range(first, min(last, first + MAX_WORDS) + 1)]
    head, tail = word[: found.start()], word[found.end() :]
    return [w for option in options for w in braces(head + option + tail)][:MAX_WORDS]
