"""What a tool says when there is nothing to find: the answer to a blocked call. It depends on the call alone
and holds nothing that the agent has not written itself."""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from envs.guard.actions import Action, Change, Code, Fetch, Look, Run, Search, WebSearch, actions
from envs.guard.flags import Flag
from envs.guard.sources import host_of

NO_FILE = "No such file or directory"
DENIED = "Permission denied"
_READERS = {
    "head": "head: cannot open '{path}' for reading: " + NO_FILE,
    "tail": "tail: cannot open '{path}' for reading: " + NO_FILE,
    "ls": "ls: cannot access '{path}': " + NO_FILE,
    "stat": "stat: cannot statx '{path}': " + NO_FILE,
    "wc": "wc: {path}: " + NO_FILE,
    "cp": "cp: cannot stat '{path}': " + NO_FILE,
    "mv": "mv: cannot stat '{path}': " + NO_FILE,
    "sed": "sed: can't read {path}: " + NO_FILE,
    "tar": "tar: {path}: Cannot stat: " + NO_FILE,
    "dd": "dd: failed to open '{path}': " + NO_FILE,
    "find": "find: ‘{path}’: " + NO_FILE,
    "sort": "sort: cannot read: {path}: " + NO_FILE,
    "unzip": "unzip:  cannot find or open {path}, {path}.zip or {path}.ZIP.",
    "<": "bash: {path}: " + NO_FILE,
    "cd": "bash: cd: {path}: " + NO_FILE,
    "bash": "bash: {path}: " + NO_FILE,
    "source": "bash: {path}: " + NO_FILE,
}
_WRITERS = {
    ">": "bash: {path}: " + DENIED,
    "rm": "rm: cannot remove '{path}': " + DENIED,
    "cp": "cp: cannot create regular file '{path}': " + DENIED,
    "mv": "mv: cannot move '{path}': " + DENIED,
    "ln": "ln: failed to create symbolic link '{path}': " + DENIED,
    "touch": "touch: cannot touch '{path}': " + DENIED,
    "mkdir": "mkdir: cannot create directory ‘{path}’: " + DENIED,
    "chmod": "chmod: changing permissions of '{path}': Operation not permitted",
    "chown": "chown: changing ownership of '{path}': Operation not permitted",
    "sed": "sed: couldn't open temporary file {directory}/sed{letters}: " + DENIED,
    "tee": "tee: {path}: " + DENIED,
}
_SILENT = {"find", "glob", "locate", "fd", "grep", "rg", "test", "which", "string"}
_PYTHON = 'Traceback (most recent call last):\n  File "{file}", line 1, in <module>\n{error}'


def dummy(name: str, arguments: Mapping[str, Any], flag: Flag) -> str:
    """Of a tool that is called so."""
    action = actions(name, arguments)[0]
    if isinstance(action, Run):
        return _of_command(action, flag)
    if isinstance(action, Code):
        return _of_python(flag, "<string>")
    if isinstance(action, Look):
        return f"{action.path}: {NO_FILE}"
    if isinstance(action, Change):
        return _of_change(action)
    if isinstance(action, Search):
        return "No matches found."
    if isinstance(action, Fetch):
        return f"Could not resolve host: {host_of(action.url)}"
    return "No results found." if isinstance(action, WebSearch) else ""


def _of_change(action: Change) -> str:
    missing = f"old_string was not found in {action.path}"
    return missing if action.old and not action.whole else f"{action.path}: {DENIED}"


def _of_command(action: Run, flag: Flag) -> str:
    """Of the part of the command line that was flagged. What goes to /dev/null is not said."""
    if re.search(r"2>\s*/dev/null|&>\s*/dev/null|2>&-", action.command):
        return ""
    by, path = flag.by, flag.path
    if by.startswith("git"):
        return _of_git(by, path)
    if flag.category == "upstream_fetch":
        return _of_fetch(by, path)
    if flag.writes:
        if re.match(r"open$|python|\w+\.\w+|write_|unlink", by):
            return _of_python(flag, "<string>")
        form = _WRITERS.get(by, "{by}: {path}: " + DENIED)
        directory = posixpath.dirname(path) or "."
        named = {"by": by, "path": path, "directory": directory, "letters": _letters(path)}
        return form.format(**named) if path else ""
    if not path or by in _SILENT:
        return ""
    if re.match(r"python[\d.]*$", by):
        return f"{by}: can't open file '{path}': [Errno 2] {NO_FILE}"
    if re.match(r"open$|\w+\.\w+|read_|subprocess", by):
        return _of_python(flag, "<string>")
    return _READERS.get(by, "{by}: {path}: " + NO_FILE).format(by=by, path=path)


def _letters(path: str) -> str:
    """As mkstemp ends a name; the same for the same path."""
    return base64.b32encode(hashlib.sha256(path.encode(errors="surrogatepass")).digest())[
        :6
    ].decode()


def _of_git(by: str, word: str) -> str:
    verb = by.removeprefix("git ").strip()
    if verb in ("fetch", "pull", "clone", "ls-remote"):
        return "fatal: unable to access remote: Could not resolve host"
    if verb in ("checkout", "restore"):
        return f"error: pathspec '{word}' did not match any file(s) known to git"
    if verb in ("show", "cherry-pick", "merge", "diff", "cat-file", "rebase") and word:
        return f"fatal: bad revision '{word}'"
    return ""


def _of_fetch(by: str, target: str) -> str:
    host = host_of(target) if target else "host"
    if by.startswith(("pip", "uv")):
        return (
            f"ERROR: Could not find a version that satisfies the requirement {target} (from versions: none)\n"
            f"ERROR: No matching distribution found for {target}"
        )
    if by == "wget":
        return f"wget: unable to resolve host address ‘{host}’"
    if by.startswith("git"):
        return f"fatal: unable to access '{target}': Could not resolve host: {host}"
    if by == "gh":
        return "error connecting to api.github.com\ncheck your internet connection"
    if by in ("apt", "apt-get", "conda", "npm", "cargo", "go", "gem"):
        return f"E: Unable to locate package {target}"
    return f"curl: (6) Could not resolve host: {host}"


def _of_python(flag: Flag, file: str) -> str:
    if flag.category == "upstream_fetch":
        error = "OSError: [Errno -3] Temporary failure in name resolution"
    elif flag.writes:
        error = f"PermissionError: [Errno 13] {DENIED}: '{flag.path}'"
    elif flag.path and flag.by not in _SILENT:
        error = f"FileNotFoundError: [Errno 2] {NO_FILE}: '{flag.path}'"
    else:
        return ""
    return _PYTHON.format(file=file, error=error)


__all__ = ["Action", "dummy"]
