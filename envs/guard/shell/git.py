"""git, as far as the guard asks: which commits are looked at, what is taken out of them, what is fetched."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envs.guard.facts import Access, Contact, Fact, GitUse, Touch
from envs.guard.paths import plain

if TYPE_CHECKING:
    from envs.guard.shell.command import Command

WITH_VALUE = {"-C", "-c", "--git-dir", "--work-tree", "--namespace", "--exec-path"}
CHANGES = {"rm", "mv", "restore", "checkout", "clean", "update-index", "apply", "am"}
DIFF_TARGET = re.compile(r"^\+\+\+ b?/?(\S+)", re.M)


def git(command: Command) -> list[Fact]:
    words = [plain(a) for a in command.args]
    verb_at = 0
    directory = ""
    while verb_at < len(words) and words[verb_at].startswith("-"):
        if words[verb_at] == "-C" and verb_at + 1 < len(words):
            directory = words[verb_at + 1]
        verb_at += 2 if words[verb_at] in WITH_VALUE else 1
    if verb_at >= len(words):
        return []
    verb, rest = words[verb_at], tuple(words[verb_at + 1 :])
    facts: list[Fact] = [GitUse(verb, rest)]
    cwds = command.memory.cwds
    if directory:
        from envs.guard.paths import absolute

        cwds = absolute(directory, cwds)
    if verb in ("clone", "fetch", "pull", "ls-remote", "remote", "submodule"):
        facts += [Contact(w, f"git {verb}") for w in rest if re.search(r"[:/]", w)]
        target = [w for w in rest if not w.startswith("-") and not re.search(r"://|@", w)]
        if verb == "clone" and target:
            facts.append(Touch(target[-1], Access.WRITE, "git clone", cwds))
    if verb in CHANGES and not _restores(verb, rest):
        paths = rest[rest.index("--") + 1 :] if "--" in rest else rest
        for path in paths:
            if not path.startswith("-"):
                facts.append(Touch(path, Access.WRITE, f"git {verb}", cwds))
    if verb in ("apply", "am") and command.stdin:
        for path in DIFF_TARGET.findall(command.stdin):
            facts.append(Touch(path, Access.WRITE, f"git {verb}", cwds, content=command.stdin))
    return facts


def _restores(verb: str, words: tuple[str, ...]) -> bool:
    """Puts files back to what HEAD or the index has: nothing is tampered with."""
    if verb not in ("checkout", "restore"):
        return False
    sources = (
        [w for w in words[: words.index("--")] if not w.startswith("-")] if "--" in words else []
    )
    if verb == "restore":
        return not any(w.startswith(("--source", "-s")) for w in words)
    if "--" in words:
        return all(s in ("HEAD", "@") for s in sources)
    return not [w for w in words if not w.startswith("-")] or words[0] in ("HEAD", ".")
