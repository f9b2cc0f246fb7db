"""A piece of Python as its nodes, walked once."""

from __future__ import annotations

import ast
import textwrap
from collections import defaultdict
from functools import cached_property
from typing import TypeVar

MAX_CODE = 200_000
N = TypeVar("N", bound=ast.AST)


class Tree:
    """tree = Tree.of(code); tree.of_type(ast.Call)"""

    def __init__(self, module: ast.Module, text: str) -> None:
        self.module, self.text = module, text
        self.nodes = list(ast.walk(module))
        self._by_type: dict[type, list[ast.AST]] = defaultdict(list)
        for node in self.nodes:
            self._by_type[type(node)].append(node)

    @classmethod
    def of(cls, code: str) -> Tree | None:
        module = parsed(code)
        return cls(module, code) if module is not None else None

    def of_type(self, kind: type[N]) -> list[N]:
        return self._by_type.get(kind, [])  # type: ignore[return-value]

    @cached_property
    def statements_alone(self) -> set[int]:
        """Ids of the values of expression statements: docstrings among them."""
        return {id(node.value) for node in self.of_type(ast.Expr)}


def parsed(code: str) -> ast.Module | None:
    """Also of a piece that is indented, or a few lines out of a function; None where it is no Python."""
    if len(code) > MAX_CODE:
        return None
    for way in _ways(code):
        try:
            return ast.parse(way)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def _ways(code: str) -> list[str]:
    dedented = textwrap.dedent(code)
    indent = " " * 4
    ways = [code, dedented, "def _piece(self):\n" + textwrap.indent(dedented, indent)]
    first, newline, rest = dedented.partition("\n")
    if newline:  # an edit often begins in the middle of a line
        rest = textwrap.dedent(rest)
        ways.append(f"{first.strip()}\n{rest}")
        ways.append(f"def _piece(self):\n{indent}{first.strip()}\n{textwrap.indent(rest, indent)}")
        ways.append(f"{first.strip()}\n{textwrap.indent(rest, indent)}")
    lines = dedented.rstrip("\n").split("\n")
    if len(lines) > 2:  # or ends there
        for part in (lines[:-1], lines[1:], lines[1:-1]):
            text = textwrap.dedent("\n".join(part))
            ways += [text, "def _piece(self):\n" + textwrap.indent(text, indent)]
    return ways
