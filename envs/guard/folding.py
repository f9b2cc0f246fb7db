"""Strings that Python code makes, where they can be told without running it."""

from __future__ import annotations

import ast
import base64
import codecs
import posixpath
import re
import urllib.parse
from collections.abc import Callable

from envs.guard.paths import UNKNOWN
from envs.guard.syntax import Tree

MAX_LENGTH = 20_000


class Folder:
    """folder = Folder(); folder.note(tree); folder.text(node)

    `UNKNOWN` stands for a part that nobody can tell; None: nothing of it can be told.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.names: dict[str, str] = {}
        """What an imported name is: `{"p": "os.path", "run": "subprocess.run"}`."""

    def note(self, tree: Tree) -> None:
        """Imports and names that are given one known string."""
        for node in tree.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.names[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._assigned(node.targets[0], node.value)
            elif isinstance(node, ast.NamedExpr):
                self._assigned(node.target, node.value)
            elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
                self.values.setdefault(node.target.id, UNKNOWN)

    def _assigned(self, target: ast.expr, value: ast.expr) -> None:
        if not isinstance(target, ast.Name):
            return
        called = self.dotted(value.func) if isinstance(value, ast.Call) else self.dotted(value)
        text = self.text(value)
        if text is not None:
            self.values[target.id] = text
        elif isinstance(value, ast.Name | ast.Attribute) and called:
            self.names[target.id] = called
        elif called in ("__import__", "importlib.import_module") and isinstance(value, ast.Call):
            module = self.text(value.args[0]) if value.args else None
            if module:
                self.names[target.id] = module

    def dotted(self, node: ast.expr) -> str:
        """`os.path.join`, with imports resolved; empty where it is no plain name."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Call):
            called = self.dotted(node.func)
            if called in ("__import__", "importlib.import_module") and node.args:
                base = self.text(node.args[0]) or ""
            elif called == "getattr" and len(node.args) > 1:
                base = f"{self.dotted(node.args[0])}.{self.text(node.args[1]) or ''}"
            elif called.endswith("Path"):
                base = "pathlib.Path"
            else:
                return "." + ".".join(reversed(parts)) if parts else ""
        elif isinstance(node, ast.Name):
            base = self.names.get(node.id, node.id)
        else:
            return "." + ".".join(reversed(parts)) if parts else ""
        return ".".join([base, *reversed(parts)])

    def text(self, node: ast.expr | None) -> str | None:
        found = self._text(node)
        return found[:MAX_LENGTH] if found is not None else None

    def _text(self, node: ast.expr | None) -> str | None:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bytes):
                return node.value.decode("utf-8", "replace")
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.Name):
            return self.values.get(node.id)
        if isinstance(node, ast.JoinedStr):
            return "".join(
                (self.text(v.value) or UNKNOWN)
                if isinstance(v, ast.FormattedValue)
                else self.text(v) or ""
                for v in node.values
            )
        if isinstance(node, ast.BinOp):
            return self._joined(node)
        if isinstance(node, ast.Subscript):
            return self._sliced(node)
        if isinstance(node, ast.Call):
            return self._called(node)
        return None

    def _joined(self, node: ast.BinOp) -> str | None:
        left, right = self.text(node.left), self.text(node.right)
        if left is None and right is None:
            return None
        if isinstance(node.op, ast.Add):
            return (UNKNOWN if left is None else left) + (UNKNOWN if right is None else right)
        if isinstance(node.op, ast.Div):
            return posixpath.join(left or UNKNOWN, right or UNKNOWN)
        if isinstance(node.op, ast.Mod) and left is not None:
            parts = node.right.elts if isinstance(node.right, ast.Tuple) else [node.right]
            values = [self.text(p) or UNKNOWN for p in parts]
            return re.sub(r"%[-\d.]*[srd]", lambda _: values.pop(0) if values else UNKNOWN, left)
        return None

    def _sliced(self, node: ast.Subscript) -> str | None:
        text = self.text(node.value)
        if text is None or not isinstance(node.slice, ast.Slice):
            return None
        parts = [node.slice.lower, node.slice.upper, node.slice.step]
        try:
            numbers = [None if p is None else ast.literal_eval(p) for p in parts]
            return text[slice(*numbers)]
        except (ValueError, TypeError, SyntaxError):
            return None

    def _called(self, node: ast.Call) -> str | None:
        name = self.dotted(node.func)
        values = [self.text(a) for a in node.args]
        tail = name.rpartition(".")[2]
        if tail in ("join", "joinpath", "Path", "PurePath", "PosixPath"):
            return self._path(node, name, values)
        if tail == "chr" and node.args and isinstance(node.args[0], ast.Constant):
            return chr(node.args[0].value) if isinstance(node.args[0].value, int) else None
        try:
            if tail == "bytes" and node.args and isinstance(node.args[0], ast.List | ast.Tuple):
                return bytes(ast.literal_eval(node.args[0])).decode("utf-8", "replace")
            decoder = _DECODERS.get(tail)
            if decoder and values and values[0] is not None:
                return decoder(values[0], values[1] if len(values) > 1 else None)
            owner = self.text(node.func.value) if isinstance(node.func, ast.Attribute) else None
            method = _METHODS.get(tail)
            if method and owner is not None:
                return method(owner, [v if v is not None else UNKNOWN for v in values])
        except (ValueError, TypeError, LookupError):
            return None
        return None

    def _path(self, node: ast.Call, name: str, values: list[str | None]) -> str | None:
        known = [v if v is not None else UNKNOWN for v in values]
        if name.endswith(("path.join", "Path", "PurePath", "PosixPath")):
            return posixpath.join(*known) if known and any(v is not None for v in values) else None
        owner = self.text(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if name.endswith("joinpath") and owner is not None:
            return posixpath.join(owner, *known)
        if owner is not None and node.args:  # "".join([...])
            return self._string_join(owner, node.args[0])
        return None

    def _string_join(self, glue: str, items: ast.expr) -> str | None:
        if isinstance(items, ast.List | ast.Tuple):
            return glue.join(self.text(e) or UNKNOWN for e in items.elts)
        if isinstance(items, ast.Call) and self.dotted(items.func) == "reversed" and items.args:
            text = self.text(items.args[0])
            return glue.join(reversed(text)) if text is not None else None
        if (
            isinstance(items, ast.Call)
            and self.dotted(items.func) == "map"
            and len(items.args) == 2
        ):
            items = items.args[1]
        if isinstance(items, ast.GeneratorExp | ast.ListComp):
            items = items.generators[0].iter
        try:
            numbers = ast.literal_eval(items)
            return glue.join(chr(n) if isinstance(n, int) else str(n) for n in numbers)
        except (ValueError, TypeError, SyntaxError):
            return None


def _b64(text: str, _: str | None) -> str:
    return base64.b64decode(text + "=" * (-len(text) % 4)).decode("utf-8", "replace")


def _hex(text: str, _: str | None) -> str:
    return bytes.fromhex(text).decode("utf-8", "replace")


_DECODERS: dict[str, Callable[[str, str | None], str]] = {
    "b64decode": _b64,
    "urlsafe_b64decode": _b64,
    "decodebytes": _b64,
    "fromhex": _hex,
    "unhexlify": _hex,
    "expanduser": lambda t, _: t.replace("~", "/root", 1),
    "abspath": lambda t, _: t,
    "realpath": lambda t, _: t,
    "fspath": lambda t, _: t,
    "str": lambda t, _: t,
    "unquote": lambda t, _: urllib.parse.unquote(t),
    "quote": lambda t, _: t,
}
_METHODS: dict[str, Callable[[str, list[str]], str]] = {
    "decode": lambda t, a: codecs.decode(t, "rot13") if a[:1] == ["rot13"] else t,
    "encode": lambda t, a: t,
    "replace": lambda t, a: t.replace(a[0], a[1]),
    "format": lambda t, a: re.sub(r"\{[^{}]*\}", lambda _: a.pop(0) if a else UNKNOWN, t),
    "strip": lambda t, a: t.strip(),
    "rstrip": lambda t, a: t.rstrip(),
    "lower": lambda t, a: t.lower(),
    "upper": lambda t, a: t.upper(),
    "resolve": lambda t, a: t,
    "absolute": lambda t, a: t,
    "expanduser": lambda t, a: t.replace("~", "/root", 1),
    "with_name": lambda t, a: posixpath.join(posixpath.dirname(t), a[0]),
    "as_posix": lambda t, a: t,
}
