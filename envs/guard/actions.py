"""Any program's tool call, in a few words of ours: what is run, read, changed, searched, fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """A shell command."""

    command: str
    workdir: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Python that runs at once."""

    text: str


@dataclass(frozen=True, slots=True)
class Look:
    """A file or directory is read or listed."""

    path: str
    lists: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A file is written or edited: `new` is what comes in, `old` what goes."""

    path: str
    new: str
    old: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """Names or contents are searched below a directory."""

    pattern: str
    path: str
    names: bool
    include: str = ""


@dataclass(frozen=True, slots=True)
class Fetch:
    url: str


@dataclass(frozen=True, slots=True)
class WebSearch:
    query: str


@dataclass(frozen=True, slots=True)
class Other:
    """A tool that nobody knows: every string in its arguments."""

    texts: tuple[str, ...]


Action = Run | Code | Look | Change | Search | Fetch | WebSearch | Other
COMMANDS = ("command", "cmd", "script", "keystrokes", "input")
PATHS = (
    "path",
    "file_path",
    "filePath",
    "absolute_path",
    "notebook_path",
    "filename",
    "file",
    "target_file",
)
NEW = (
    "new",
    "content",
    "contents",
    "new_string",
    "newString",
    "new_str",
    "file_text",
    "text",
    "new_source",
    "insert_text",
    "replacement",
)
OLD = ("old", "old_string", "oldString", "old_str")
_SHELL = re.compile(r"bash|shell|terminal|exec(ute)?_?command|^run_?command|^exec$|^execute$", re.I)
_PYTHON = re.compile(r"python|jupyter|^ipython|^run_?code|^execute_code|notebook_run", re.I)
_PATCHED = re.compile(r"^\*\*\* (?:Update|Add|Delete) File: (.+)$|^\+\+\+ (?:b/)?(\S+)", re.M)


def actions(name: str, arguments: Mapping[str, Any]) -> list[Action]:
    """What the call does. Names are those of the usual agent programs and of our own tools."""
    given = {k: v for k, v in arguments.items() if v is not None}
    command = _command(given)
    if command is not None and (_SHELL.search(name) or "code" not in given):
        return [Run(command, str(given.get("workdir") or given.get("cwd") or ""))]
    if _PYTHON.search(name) and (
        code := _first(given, ("code", "script", "source", "input", "text"))
    ):
        return [Code(code)]
    if url := _first(given, ("url", "uri")):
        return [Fetch(url), *([WebSearch(str(given["prompt"]))] if "prompt" in given else [])]
    if re.search(r"web.?search|^search_web|google|browse", name, re.I) and (
        q := _first(given, ("query", "q"))
    ):
        return [WebSearch(q)]
    if re.search(r"patch", name, re.I) and (text := _first(given, ("patch", "input", "diff"))):
        paths = [a or b for a, b in _PATCHED.findall(text)]
        return [Change(p, _added(text), text) for p in paths] or [Other((text,))]
    path = _first(given, PATHS)
    if isinstance(given.get("edits"), list) and path:
        edits = [e for e in given["edits"] if isinstance(e, Mapping)]
        return [Change(path, _first(e, NEW) or "", _first(e, OLD) or "") for e in edits]
    if path is not None and (new := _first(given, NEW, empty=True)) is not None:
        old = _first(given, OLD) or ""
        return [
            Change(path, new, old, whole=not old and "insert" not in str(given.get("command", "")))
        ]
    pattern = _first(given, ("pattern", "query", "regex", "glob"))
    if pattern is not None and re.search(r"grep|glob|search|find|list|ripgrep", name, re.I):
        names = bool(re.search(r"glob|find|file", name, re.I))
        return [
            Search(
                pattern,
                path or str(given.get("directory") or "."),
                names,
                str(given.get("include") or given.get("glob") or given.get("files") or ""),
            )
        ]
    if path is not None or (path := _first(given, ("directory", "dir_path", "dir"))) is not None:
        if re.search(r"delete|remove|unlink", name, re.I):
            return [Change(path, "", "", whole=True)]
        return [Look(path, lists=bool(re.search(r"^ls$|list|tree|dir", name, re.I)))]
    if isinstance(given.get("code"), str):
        return [Code(given["code"])]
    return [Other(tuple(strings(given)))]


def is_shell(name: str, arguments: Mapping[str, Any]) -> bool:
    found = actions(name, arguments)
    return bool(found) and isinstance(found[0], Run)


def command_key(arguments: Mapping[str, Any]) -> str | None:
    """Under which name a call's command stands."""
    return next((k for k in COMMANDS if isinstance(arguments.get(k), str | list)), None)


def _command(given: Mapping[str, Any]) -> str | None:
    key = command_key(given)
    if key is None or (key in ("input", "script") and any(p in given for p in PATHS)):
        return None
    value = given[key]
    if isinstance(value, list):
        words = [str(v) for v in value]
        if len(words) >= 3 and words[0].endswith("sh") and re.fullmatch(r"-\w*c\w*", words[1]):
            return words[2]
        return " ".join("'" + w.replace("'", "'\\''") + "'" for w in words)
    # Editors of one tool (`str_replace_based_edit_tool`) have a `command` of their own.
    if value in ("view", "create", "str_replace", "insert", "undo_edit"):
        return None
    return str(value)


def _first(given: Mapping[str, Any], keys: Sequence[str], *, empty: bool = False) -> str | None:
    for key in keys:
        value = given.get(key)
        if isinstance(value, str) and (value or empty):
            return value
    return None


def _added(patch: str) -> str:
    return "\n".join(
        line[1:]
        for line in patch.splitlines()
        if line.startswith("+") and not line.startswith("+++")
    )


def strings(value: Any) -> list[str]:
    """Every string in a nested value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list | tuple):
        return [s for v in value for s in strings(v)]
    return []
