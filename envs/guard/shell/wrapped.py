"""Commands that run another command: `sudo`, `env`, `timeout`, `xargs`, `find -exec`, `nohup`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from envs.guard.paths import UNKNOWN, plain

WITH_VALUE = {
    "sudo": {"-u", "-g", "-C", "-p", "-h", "--user"},
    "doas": {"-u"},
    "env": {"-u", "-C", "-S", "--unset", "--chdir"},
    "nice": {"-n"},
    "ionice": {"-c", "-n", "-p"},
    "timeout": {"-k", "-s", "--signal", "--kill-after"},
    "stdbuf": {"-i", "-o", "-e"},
    "watch": {"-n", "--interval"},
    "strace": {"-e", "-o", "-p", "-s"},
    "xargs": {"-I", "-n", "-P", "-L", "-d", "-a", "-s", "-E", "--max-args", "--max-procs", "-i"},
    "parallel": {"-j", "--jobs"},
    "chroot": set(),
    "unshare": set(),
}
PLAIN = {"nohup", "setsid", "time", "command", "exec", "builtin", "busybox", "proot", "fakeroot"}
LEADING_ARGUMENTS = {"timeout": 1, "chroot": 1, "flock": 1}
_ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*)=(.*)$", re.S)


@dataclass(slots=True)
class Unwrapped:
    argv: list[str]
    settings: list[tuple[str, str]] = field(default_factory=list)
    """Environment variables for it alone."""


def unwrapped(argv: Sequence[str]) -> list[Unwrapped]:
    """The commands that really run: of `find`, itself and what `-exec` names."""
    words = list(argv)
    settings: list[tuple[str, str]] = []
    for _ in range(6):
        if not words:
            break
        name = posixpath.basename(plain(words[0]))
        if name in WITH_VALUE or name in PLAIN or name in LEADING_ARGUMENTS:
            words, found = _inner(name, words[1:])
            settings += found
        else:
            break
    if not words:
        # `env`, `sudo` or `nohup` alone; what is left is the command itself.
        return [Unwrapped(list(argv), settings)]
    commands = [Unwrapped(words, settings)]
    if posixpath.basename(plain(words[0])) == "find":
        commands += [Unwrapped(inner) for inner in _executed(words)]
    return commands


def _inner(name: str, words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    takes_value = WITH_VALUE.get(name, set())
    settings: list[tuple[str, str]] = []
    left = LEADING_ARGUMENTS.get(name, 0)
    index = 0
    while index < len(words):
        word = plain(words[index])
        assigned = _ASSIGNMENT.match(word) if name in ("env", "sudo") else None
        if word == "--":
            index += 1
            break
        if word.startswith("-") and len(word) > 1:
            index += 2 if word in takes_value else 1
        elif assigned:
            settings.append((assigned[1], assigned[2]))
            index += 1
        elif left:
            left -= 1
            index += 1
        else:
            break
    rest = words[index:]
    if name in ("xargs", "parallel") and rest:
        rest = [*rest, UNKNOWN]  # what it is given on standard input
    return rest, settings


def _executed(words: Sequence[str]) -> list[list[str]]:
    """The commands of `-exec`, with the places where `find` begins in place of `{}`."""
    roots = []
    for word in words[1:]:
        if word.startswith(("-", "(", "!")):
            break
        roots.append(word)
    commands = []
    index = 0
    while index < len(words):
        if plain(words[index]) in ("-exec", "-execdir", "-ok"):
            end = index + 1
            while end < len(words) and words[end] not in (";", "+"):
                end += 1
            inner = words[index + 1 : end]
            named = roots or ["."]
            commands.append([x for w in inner for x in (named if "{}" in w else [w])])
            index = end
        index += 1
    return [c for c in commands if c]
