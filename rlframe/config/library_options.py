"""Options as an installed library declares them, read from its source: nothing of it is imported.

A new version's options are known as soon as it is installed, and `rlframe --dry-run` stays a matter of
tenths of a second (SGLang alone takes many seconds to import).
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rlframe.config.dictionary_keys import looked_up, string_constants
from rlframe.errors import UserError


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Example (SGLang): Option("tp_size", "int", "1", "The tensor parallelism size.",
    aliases=("tensor_parallel_size",))
    """

    name: str
    type_text: str
    """Its annotation as source; empty: anything."""
    default_text: str
    help: str
    choices: tuple[Any, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Library:
    """Where a library declares options: classes in files below its package."""

    distribution: str
    package: str
    """Its top package, which is located but never imported."""
    files: tuple[str, ...]
    """Glob patterns below the package; of two declarations of a name, the first counts."""
    classes: tuple[str, ...] = ()
    """Whose annotated fields are options; all classes of the files if empty."""
    dictionary: str = ""
    """Instead of annotated fields: keys that functions look up in a dictionary of this name."""
    name_set: str = ""
    """Instead of annotated fields: a class attribute that is a set of names."""
    choice_lists: str = ""
    """A file with the lists of choices that fields refer to by name."""
    extra: tuple[str, ...] = ()
    """Names taken besides those declared, such as the old names of a renamed field."""
    owned: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Options that follow from a key of rlframe's: name to key (`rlframe.config.owned`)."""
    fixed: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Options that nobody may set: name to reason."""

    @property
    def shown(self) -> str:
        """Name and installed version."""
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"


@cache
def options_of(library: Library) -> Mapping[str, Option]:
    """All options by name. UserError where the library is not installed."""
    root = _package_root(library)
    if library.dictionary:
        return _looked_up(root, library)
    choices = _choice_lists(root / library.choice_lists) if library.choice_lists else {}
    found: dict[str, Option] = {}
    for pattern in library.files:
        for path in sorted(root.glob(pattern)):
            for option in _declared(ast.parse(path.read_text()), library, choices):
                found.setdefault(option.name, option)
    assert found, f"{library.shown} declares its options elsewhere: {library.files}"
    for name in library.extra:
        found.setdefault(name, Option(name, "", "", "an older name that is still read"))
    return found


def _looked_up(root: Path, library: Library) -> dict[str, Option]:
    trees = [ast.parse(p.read_text()) for pattern in library.files for p in root.glob(pattern)]
    constants = string_constants(trees)
    names = {key for tree in trees for key in looked_up(tree, library.dictionary, constants)}
    assert names, f"{library.shown} reads its configuration elsewhere: {library.files}"
    return {name: Option(name, "", "", "") for name in sorted(names | set(library.extra))}


def _package_root(library: Library) -> Path:
    spec = importlib.util.find_spec(library.package.split(".")[0])
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{library.distribution} is not installed: run `make setup`")
    return Path(next(iter(spec.submodule_search_locations)), *library.package.split(".")[1:])


def _declared(
    tree: ast.Module, library: Library, choices: Mapping[str, tuple[Any, ...]]
) -> Iterator[Option]:
    """Annotated fields of the classes, each with the help that its annotation or the next line carries."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        if library.classes and node.name not in library.classes:
            continue
        if library.name_set:
            yield from _named(node, library.name_set)
            continue
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            if isinstance(statement.target, ast.Name) and not _is_hidden(statement):
                yield _option(statement, statement.target.id, following, choices)


def _is_hidden(statement: ast.AnnAssign) -> bool:
    value = ast.unparse(statement.value) if statement.value else ""
    return "ClassVar" in ast.unparse(statement.annotation) or "init=False" in value


def _option(
    statement: ast.AnnAssign,
    name: str,
    following: ast.stmt | None,
    choices: Mapping[str, tuple[Any, ...]],
) -> Option:
    annotation, extras = _unwrap(statement.annotation)
    described = {"help": _docstring(following), "choices": (), "aliases": ()}
    for extra in extras:
        if isinstance(extra, ast.Constant) and isinstance(extra.value, str):
            described["help"] = extra.value
        elif isinstance(extra, ast.Call):
            described.update(_metadata(extra, choices))
    return Option(
        name=name,
        type_text=ast.unparse(annotation),
        default_text=_default(statement.value),
        **described,  # type: ignore[arg-type]
    )


def _default(value: ast.expr | None) -> str:
    """As source, without the `field(default=...)` around it."""
    if value is None:
        return "(none: it is required)"
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        for keyword in value.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
            if keyword.arg == "default_factory":
                return f"{ast.unparse(keyword.value)}()"
    return ast.unparse(value)


def _unwrap(node: ast.expr) -> tuple[ast.expr, list[ast.expr]]:
    """`A[T, ...]` (SGLang's name of Annotated) to T and the rest; anything else as it is."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("A", "Annotated"):
        assert isinstance(node.slice, ast.Tuple)
        return node.slice.elts[0], node.slice.elts[1:]
    return node, []


def _metadata(call: ast.Call, lists: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Of SGLang's `Arg(help=..., choices=..., aliases=[...])`."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    found: dict[str, Any] = {}
    if isinstance(given.get("help"), ast.Constant):
        found["help"] = str(ast.literal_eval(given["help"]))
    if "choices" in given:
        found["choices"] = _literal(given["choices"], lists)
    if "aliases" in given:
        flags = _literal(given["aliases"], lists)
        found["aliases"] = tuple(flag.lstrip("-").replace("-", "_") for flag in flags)
    return found


def _literal(node: ast.expr, lists: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """A list written out, the name of one, or a sum of them; () where it is none of these."""
    if isinstance(node, ast.Name):
        return lists.get(node.id, ())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = _literal(node.left, lists), _literal(node.right, lists)
        return parts[0] + parts[1] if all(parts) else ()
    try:
        return tuple(ast.literal_eval(node))
    except (ValueError, TypeError):
        return ()


def _choice_lists(path: Path) -> dict[str, tuple[Any, ...]]:
    lists: dict[str, tuple[Any, ...]] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            lists[node.targets[0].id] = _literal(node.value, lists)
    return lists


def _named(node: ast.ClassDef, attribute: str) -> Iterator[Option]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == attribute:
            assert statement.value is not None
            for name in sorted(ast.literal_eval(statement.value)):
                yield Option(name, "", "", "")


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""
