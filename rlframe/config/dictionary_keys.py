"""Keys that a library reads out of a plain dictionary, found in its source: DeepSpeed declares no fields at the
top of its configuration, its functions look names up in `param_dict`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping


def string_constants(trees: Iterable[ast.Module]) -> dict[str, str]:
    """`NAME = "text"` at the top of modules; of two, the first counts."""
    found: dict[str, str] = {}
    for tree in trees:
        for node in tree.body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                found.setdefault(node.targets[0].id, node.value.value)
    return found


def looked_up(tree: ast.Module, dictionary: str, constants: Mapping[str, str]) -> Iterator[str]:
    """Keys that are looked up in a variable of this name: `d[KEY]`, `KEY in d`, `d.get(KEY)`, `get_x(d, KEY)`."""
    for node in ast.walk(tree):
        for key in _keys(node, dictionary):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
            elif isinstance(key, ast.Name) and key.id in constants:
                yield constants[key.id]


def _keys(node: ast.AST, dictionary: str) -> list[ast.expr]:
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
        return [node.left] if _is_it(node.comparators[0], dictionary) else []
    if isinstance(node, ast.Subscript):
        return [node.slice] if _is_it(node.value, dictionary) else []
    if not isinstance(node, ast.Call) or not node.args:
        return []
    if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return [node.args[0]] if _is_it(node.func.value, dictionary) else []
    is_getter = isinstance(node.func, ast.Name) and node.func.id.startswith("get_")
    return node.args[1:2] if is_getter and _is_it(node.args[0], dictionary) else []


def _is_it(node: ast.expr, dictionary: str) -> bool:
    """`d`, or `d.keys()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return isinstance(node, ast.Name) and node.id == dictionary
