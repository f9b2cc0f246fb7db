"""Which paths, hosts and packages a command uses, by its name and its words.

What is not known by name counts as a reader of every word that may be a path: recall comes first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.guard.facts import Access
from envs.guard.paths import absolute, plain
from envs.guard.shell.command import Command, ShellState, foreign_code, touch
from envs.guard.shell.fetching import FETCHERS
from envs.guard.shell.git import git
from envs.guard.shell.path_commands import SPECIAL, generic

SHELLS = {"bash", "sh", "zsh", "dash", "ksh", "ash"}
NO_PATHS = {
    "echo", "printf", "true", "false", ":", "exit", "return", "sleep", "kill", "pushd", "set", "unset",
    "shift", "trap", "wait", "jobs", "whoami", "id", "uname", "hostname", "type",
    "seq", "expr", "let", "test", "history", "clear", "yes", "nproc", "ulimit", "umask", "tr",
    "basename", "dirname",
}  # fmt: skip


def facts_of(command: Command, shell: ShellState) -> str | None:
    """Notes them; the command's output where only its reader can tell it."""
    name = command.name
    if name in SHELLS or name in ("eval", "source", "."):
        return _shells(command, shell)
    if command.is_interpreter:
        _interpreters(command, shell)
        return None
    if name == "git":
        shell.facts.extend(git(command))
        for word in command.operands():
            name, colon, inner = word.rpartition(":")
            if colon and "/" not in name:  # REF:path
                word = inner
            touch(shell, Access.READ, "git", [word] if "/" in word or colon else [])
        return None
    if name in FETCHERS:
        shell.facts.extend(FETCHERS[name](command))
        paths = [w for w in command.operands() if "/" in w and "://" not in plain(w)]
        touch(shell, Access.READ, name, paths, certain=False)
        for path in command.option("-o", "-O", "--output", "-d", "--dest", "-P", "-t", "--target"):
            touch(shell, Access.WRITE, name, [path])
        local = [a for a in command.args if plain(a).startswith("file://")]
        touch(shell, Access.READ, name, local)
        uploads = command.option("-T", "--upload-file", "-F", "--data-binary", "-d", "--data")
        touch(shell, Access.READ, name, [u.split("@")[-1] for u in uploads if "@" in u or "/" in u])
        return None
    special = SPECIAL.get(name)
    if special is not None:
        special(command, shell)
    elif name not in NO_PATHS:
        generic(command, shell)
    return None


def _shells(command: Command, shell: ShellState) -> str | None:
    if command.name == "eval":
        return shell.script(plain(" ".join(command.args)))
    if command.name in ("source", "."):
        touch(shell, Access.RUN, command.name, command.args[:1])
        return _script_file(command.args[:1], shell)
    for index, word in enumerate(command.args):
        if re.fullmatch(r"-[a-z]*c[a-z]*", word) and index + 1 < len(command.args):
            positional = command.args[index + 2 :]
            touch(shell, Access.READ, command.name, positional)
            shell.memory.variables |= {str(i): (a,) for i, a in enumerate(positional)}
            return shell.script(plain(command.args[index + 1]))
    operands = command.operands(with_value=("-o", "-O"))
    if operands:
        touch(shell, Access.RUN, command.name, operands[:1])
        touch(shell, Access.READ, command.name, operands[1:])
        return _script_file(operands[:1], shell)
    if command.stdin is not None:
        return shell.script(plain(command.stdin))
    return None


def _script_file(words: Sequence[str], shell: ShellState) -> str | None:
    """A script that the agent has written earlier is read like a command."""
    for word in words:
        for path in absolute(word, shell.memory.cwds):
            text = shell.memory.written.get(path)
            if text is not None:
                return shell.script(text)
    return None


def _interpreters(command: Command, shell: ShellState) -> None:
    """Code is read: Python's by its syntax tree, other languages' for what stands in quotes."""
    is_python = command.name.startswith(("py", "ipython"))
    operands = command.operands(with_value=("-m", "-c", "-e", "-W", "-X", "-v", "-F", "-f"))
    codes = command.option("-c") if is_python else command.option("-e", "-r", "-ne", "-pe", "-E")
    if command.name.endswith("awk"):
        codes, operands = operands[:1], operands[1:]
    if not codes and command.stdin is not None and (not operands or operands[0] == "-"):
        codes = [command.stdin]
    for code in codes:
        if is_python:
            shell.facts.extend(shell.read_python(plain(code), shell.memory))
        else:
            foreign_code(plain(code), command.name, shell)
    modules = command.option("-m")
    if is_python and modules:
        _module(plain(modules[0]), command, shell)
        operands = operands if modules[0] not in operands else operands[1:]
    if operands and not codes and not modules:
        touch(shell, Access.RUN, command.name, operands[:1])
        operands = operands[1:]
    in_place = re.compile(r"-[a-z]*i")
    edits = command.name == "perl" and any(in_place.match(a) for a in command.args)
    touch(shell, Access.WRITE if edits else Access.READ, command.name, operands)
    touch(shell, Access.READ, command.name, command.option("-f"))
    for word in command.args:
        if word.startswith("--") and "=" in word:
            touch(shell, Access.READ, command.name, [word.partition("=")[2]])


def _module(module: str, command: Command, shell: ShellState) -> None:
    after = command.args[command.args.index(module) + 1 :] if module in command.args else []
    inner = Command(module, [module, *after], None, command.memory)
    if module in FETCHERS:
        shell.facts.extend(FETCHERS[module](inner))
    elif module in SPECIAL:
        SPECIAL[module](inner, shell)
    else:
        generic(inner, shell)
