"""One small change of a Python source at one place, the rest of the text untouched.

Kinds: comparison, arithmetic, boolean, negation, number, condition. Found by the syntax tree, in functions
only; the same source gives the same list.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
}


@dataclass(frozen=True, slots=True)
class Mutation:
    """`before` at (line, column) becomes `after`; columns count bytes of UTF-8, as `ast` does."""

    kind: str
    function: str
    line: int
    column: int
    before: str
    after: str

    def applied(self, source: str) -> str:
        """Raises ValueError where `before` does not stand there."""
        lines = source.splitlines(keepends=True)
        text = lines[self.line - 1].encode()
        old = self.before.encode()
        if text[self.column : self.column + len(old)] != old:
            raise ValueError(f"line {self.line} has no {self.before!r} at column {self.column}")
        changed = text[: self.column] + self.after.encode() + text[self.column + len(old) :]
        lines[self.line - 1] = changed.decode()
        return "".join(lines)


def mutations(source: str) -> list[Mutation]:
    """All of them, in the order of the text."""
    found: list[Mutation] = []
    for name, function in _functions(ast.parse(source), ""):
        for node in _own_nodes(function):
            for kind, changed in _changes(node):
                made = _mutation(source, kind, name, node, changed)
                if made is not None:
                    found.append(made)
    return sorted(set(found), key=lambda m: (m.line, m.column, m.kind, m.after))


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from _functions(child, f"{name}.")


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Without those of functions and classes inside, and without decorators, defaults, annotations."""
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARE:
        other = COMPARE[type(node.ops[0])]()
        yield "comparison", ast.Compare(node.left, [other], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _text(node):
        yield "arithmetic", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        other_bool = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", ast.BoolOp(other_bool, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "negation", node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < 100:
        yield "number", ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield "condition", ast.IfExp(node.test, node.orelse, node.body)


def _text(node: ast.BinOp) -> bool:
    """Formatting and joining of texts are no arithmetic."""
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _mutation(
    source: str, kind: str, function: str, node: ast.AST, changed: ast.expr
) -> Mutation | None:
    """None where the text spans lines, or does not read as its tree does."""
    before = ast.get_source_segment(source, node)
    line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
    if not before or "\n" in before:
        return None
    after = ast.unparse(ast.fix_missing_locations(changed))
    if isinstance(changed, ast.BoolOp | ast.IfExp | ast.Compare | ast.BinOp):
        after = f"({after})"
    mutation = Mutation(kind, function, line, column, before, after)
    try:
        ast.parse(mutation.applied(source))
    except (SyntaxError, ValueError):
        return None
    return mutation
