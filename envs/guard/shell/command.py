"""One simple command of a shell, and how its words are told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from envs.guard.facts import Access, Fact, Memory

INTERPRETERS = re.compile(
    r"^(python[\d.]*|pypy\d*|ipython\d*|perl|ruby|node|php|lua|awk|gawk|mawk)$"
)
_PATH_IN_CODE = re.compile(r"""(?:[\w.~*?\[\]{}-]*/[\w./~*?\[\]{}@-]*)|["']([^"'\n]{2,200})["']""")


ReadPython = Callable[[str, Memory], list[Fact]]


class ShellState(Protocol):
    """The shell that reads a command, as far as the command's meaning concerns it."""

    memory: Memory
    facts: list[Fact]

    @property
    def read_python(self) -> ReadPython: ...

    def script(self, text: str, stdin: str | None = None) -> str | None:
        """Reads commands; what they print, where that is known."""
        ...

    def touch(self, access: Access, by: str, words: Sequence[str], **more: object) -> None:
        """Notes that paths are used; `more`: fields of `Touch`."""
        ...


@dataclass(slots=True)
class Command:
    """One simple command."""

    name: str
    argv: list[str]
    stdin: str | None
    memory: Memory

    @property
    def is_interpreter(self) -> bool:
        return bool(INTERPRETERS.match(self.name))

    @property
    def args(self) -> list[str]:
        return self.argv[1:]

    def operands(self, *, with_value: Sequence[str] = ()) -> list[str]:
        """Arguments that are no options; `with_value`: options that take the next word."""
        found: list[str] = []
        skip = plain_only = False
        for word in self.args:
            if skip:
                skip = False
            elif plain_only or not word.startswith("-") or word == "-":
                found.append(word)
            elif word == "--":
                plain_only = True
            else:
                skip = word in with_value
        return found

    def option(self, *names: str) -> list[str]:
        """Values of an option: `-o x`, `-ox`, `--output=x`, `--output x`."""
        values = []
        for index, word in enumerate(self.args):
            for name in names:
                if word == name and index + 1 < len(self.args):
                    values.append(self.args[index + 1])
                elif name.startswith("--") and word.startswith(name + "="):
                    values.append(word[len(name) + 1 :])
                elif len(name) == 2 and word.startswith(name) and len(word) > 2 and word[1] != "-":
                    values.append(word[2:])
        return values

    def has(self, *letters: str) -> bool:
        """Whether one of the short or long flags is given, alone or in a cluster."""
        short = {letter[1] for letter in letters if len(letter) == 2}
        clusters = (w[1:] for w in self.args if re.fullmatch(r"-[A-Za-z]+", w))
        return any(w in letters for w in self.args) or any(short & set(c) for c in clusters)


def touch(shell: ShellState, access: Access, by: str, words: Sequence[str], **more: object) -> None:
    shell.touch(access, by, words, **more)


def foreign_code(code: str, by: str, shell: ShellState) -> None:
    """Code in a language that is not read: what may be a path in it."""
    writes = bool(re.search(r"writeFile|['\"]>>?|['\"]w['\"]|unlink|File\.write", code))
    access = Access.WRITE if writes else Access.READ
    for found in _PATH_IN_CODE.finditer(code):
        text = (found[1] or found[0]).strip("<>| ")
        touch(shell, access, by, [text], certain=False)
