"""A tool call to its facts: by tool, by shell, by Python, by the file that is written."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from envs.guard.actions import (
    Action,
    Change,
    Code,
    Fetch,
    Look,
    Run,
    Search,
    WebSearch,
    actions,
)
from envs.guard.facts import (
    Access,
    Borrowed,
    Contact,
    Fact,
    Hunt,
    Memory,
    Query,
    Suspicion,
    Touch,
)
from envs.guard.other_code import other_suspicions
from envs.guard.paths import absolute, active, is_known
from envs.guard.python_code import Reader
from envs.guard.shell.interpreter import Shell
from envs.guard.suspicious_code import suspicions
from envs.guard.syntax import Tree

SHELL_FILE = re.compile(
    r"(\.(sh|bash)|(^|/)(\.bashrc|\.profile|\.bash_profile|\.zshrc|Makefile|makefile)|"
    r"^/etc/(profile|bash\.bashrc|environment)|/profile\.d/[^/]+)$"
)
SHEBANG = re.compile(r"#!\S*(\b(ba|da|z)?sh\b|env bash)")
PYTHON_FILE = (".py", ".pyi", ".pth", ".ipynb")
PROSE = (".md", ".txt", ".rst", ".json", ".jsonl", ".csv", ".html", ".svg", ".lock", ".diff", ".patch")  # fmt: skip
OTHER_CODE = (".c", ".cc", ".cpp", ".h", ".rs", ".go", ".js", ".ts", ".rb", ".pl", ".java", ".cu")
HELPER = re.compile(
    r"(^|/)(tests?|tmp|scripts|bench(marks)?|examples)/|"
    r"(^|[/_])(tests?|check|debug|run|eval|bench|gen|brute|compare|repro|try|tmp|demo|setup|conftest)[^/]*\.py$"
)
DATA = re.compile(r"(test|case|expected|bench|sample|public)[\w-]*\.(json|jsonl|csv|txt|pkl|npy|npz|h5)$")  # fmt: skip
QUOTED = re.compile(r"""["']([^"'\n]{3,200})["']""")
PATH_LIKE = re.compile(r"[\w.~*-]*/[\w./*~-]+")
MAX_SCANNED = 20_000


def facts_of_call(name: str, arguments: Mapping[str, Any], memory: Memory) -> list[Fact]:
    """`memory` is changed as far as the call changes where later ones begin."""
    return [fact for action in actions(name, arguments) for fact in _facts(action, memory)]


def read_shell(command: str, memory: Memory) -> list[Fact]:
    facts = Shell(memory, read_python).read(command)
    return [*facts, *_of_written(facts, memory)]


def read_python(code: str, memory: Memory) -> list[Fact]:
    tree = Tree.of(code)
    reader = Reader(memory, read_shell)
    if tree is None:
        return reader.read(code)
    return [*reader.read_tree(tree), *suspicions(tree, path="")]


def read_file(path: str, content: str, memory: Memory, *, old: str = "") -> list[Fact]:
    """What a file does whose content is new."""
    extension = posixpath.splitext(path)[1]
    if SHELL_FILE.search(path) or SHEBANG.match(content):
        return _shell_later(content, memory)
    if extension in PYTHON_FILE or (
        not extension and content.startswith(("#!", "import ", "from "))
    ):
        return _python_later(path, content, memory, old=old)
    if extension in PROSE:
        return []
    texts = (QUOTED if extension in OTHER_CODE else PATH_LIKE).findall(content[:MAX_SCANNED])
    facts: list[Fact] = [
        Touch(text, Access.READ, "string", memory.cwds, certain=False)
        for text in texts
        if "/" in text and is_known(text)
    ]
    if extension in OTHER_CODE:
        facts += other_suspicions(content)
    return facts


def _facts(action: Action, memory: Memory) -> list[Fact]:
    cwds = memory.cwds
    if isinstance(action, Run):
        if action.workdir:
            memory.cwds = absolute(action.workdir, cwds)
        return read_shell(action.command, memory)
    if isinstance(action, Code):
        return read_python(action.text, memory)
    if isinstance(action, Look):
        return [Touch(action.path, Access.LIST if action.lists else Access.READ, "read", cwds)]
    if isinstance(action, Change):
        touch = Touch(action.path, Access.WRITE, "edit", cwds, content=action.new)
        return [touch, *read_file(action.path, action.new, memory, old=action.old)]
    if isinstance(action, Search):
        return _search(action, memory)
    if isinstance(action, Fetch):
        return [Contact(action.url, "fetch")]
    if isinstance(action, WebSearch):
        return [Query(action.query)]
    known = [t for t in action.texts if len(t) < 300 and is_known(t)]
    return [Touch(t, Access.READ, "argument", cwds, certain=False) for t in known]


def _search(action: Search, memory: Memory) -> list[Fact]:
    if not action.names:
        touch = Touch(
            action.path, Access.READ, "grep", memory.cwds, True, (".*",), action.include or None
        )
        return [touch]
    whole = action.pattern if action.pattern.startswith("/") else f"{action.path}/{action.pattern}"
    return [
        Hunt((action.pattern,), action.path, "glob", memory.cwds),
        Touch(active(whole), Access.LIST, "glob", memory.cwds),
    ]


def _of_written(facts: list[Fact], memory: Memory) -> list[Fact]:
    """Files that a command line makes are read like files that a tool makes."""
    made = [
        f
        for f in facts
        if isinstance(f, Touch) and f.access is Access.WRITE and f.by in (">", "tee")
    ]
    return [fact for f in made if f.content for fact in read_file(f.path, f.content, memory)]


def _shell_later(content: str, memory: Memory) -> list[Fact]:
    """Of a script: what it sets is not set now."""
    apart = Memory(cwds=memory.cwds, variables=dict(memory.variables), written=memory.written)
    return Shell(apart, read_python).read(content)


def _python_later(path: str, content: str, memory: Memory, *, old: str) -> list[Fact]:
    """Suspicions that the old text raises too are none of this edit's."""
    tree = Tree.of(content)
    reader = Reader(memory, _shell_later)
    if tree is None:
        return reader.read(content)
    found = list(suspicions(tree, path=path))
    before = Tree.of(old) if old and found else None
    known = set(suspicions(before, path=path)) if before is not None else set()
    facts = reader.read_tree(tree)
    return [*facts, *_own(tree, path, facts, memory), *(s for s in found if s not in known)]


def _own(tree: Tree, path: str, facts: list[Fact], memory: Memory) -> list[Fact]:
    """What a solution's file should not do, and a test's or a script's may: use the modules and the data
    that it is checked with, and keep a record of its calls."""
    if HELPER.search(path):
        return []
    modules = {alias.name for node in tree.of_type(ast.Import) for alias in node.names}
    modules |= {n.module for n in tree.of_type(ast.ImportFrom) if n.module and not n.level}
    found: list[Fact] = [Borrowed(m.replace(".", "/") + ".py", memory.cwds) for m in modules]
    touches = [f for f in facts if isinstance(f, Touch)]
    found += [Borrowed(t.path, t.cwds) for t in touches if t.by != "string" and DATA.search(t.path)]
    written = {t.path for t in touches if t.access is Access.WRITE}
    if any(t.path in written and t.access is not Access.WRITE for t in touches):
        found.append(Suspicion("state_recording", "writes a file and looks at it again"))
    return found
