"""Paths with wildcards, compared: may what the agent names be what the task protects?

An agent's word keeps apart what a shell would expand from what only looks so: active wildcards are
private characters (`STAR`, `ANY`, `OPEN`), a quoted `*` stays a plain character. What nobody can know
(a variable without a value) is `UNKNOWN`, and may be anything.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

STAR, ANY, OPEN, UNKNOWN = "\ue000", "\ue001", "\ue002", "\ue003"
ACTIVE = re.compile(f"[{STAR}{ANY}{OPEN}{UNKNOWN}]")
_TO_ACTIVE = str.maketrans({"*": STAR, "?": ANY, "[": OPEN})
_TO_PLAIN = str.maketrans({STAR: "*", ANY: "?", OPEN: "[", UNKNOWN: "*"})
_PROC_ROOT = re.compile(r"^/proc/(?:self|thread-self|\d+|\*)/(?:root|cwd)(?=/|$)")
HOME = "/root"


def active(pattern: str) -> str:
    """A pattern whose wildcards are meant."""
    return pattern.translate(_TO_ACTIVE)


def plain(word: str) -> str:
    """As the agent wrote it; UNKNOWN is `*`."""
    return word.translate(_TO_PLAIN)


def is_known(word: str) -> bool:
    """Whether enough of it is known to say anything about it."""
    return bool(re.search(r"[\w.]", ACTIVE.sub("", word)))


def absolute(path: str, cwds: Sequence[str]) -> tuple[str, ...]:
    """All that a path may mean."""
    if path == "~" or path.startswith("~/"):
        path = HOME + path[1:]
    path = path.removeprefix("file://")
    if path.startswith("/"):
        return (_PROC_ROOT.sub("", posixpath.normpath("/" + path.lstrip("/"))) or "/",)
    if path.startswith(UNKNOWN):  # an unknown directory: it may be any
        return ("/**/" + path.lstrip(UNKNOWN).lstrip("/"),)
    found = [posixpath.normpath(posixpath.join(cwd, path)) for cwd in cwds]
    if path.startswith("../") or not cwds:
        found.append(posixpath.normpath("/" + path))
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


@lru_cache(maxsize=65536)
def _components_meet(given: str, wanted: str) -> bool:
    """`given` has active wildcards, `wanted` ordinary ones."""
    if given == wanted:
        return True
    has_active = ACTIVE.search(given)
    has_wild = any(c in wanted for c in "*?[")
    if not has_active:
        return has_wild and _regex(wanted).match(given) is not None
    if not has_wild:
        # As in a shell: a wildcard does not stand for a leading dot.
        if wanted.startswith(".") and given[0] in (STAR, ANY, OPEN):
            return False
        return _regex(plain(given)).match(wanted) is not None
    left = ACTIVE.split(given)
    right = re.split(r"[*?\[]", wanted)
    heads, tails = (left[0], right[0]), (left[-1], right[-1])
    short_head, short_tail = min(map(len, heads)), min(map(len, tails))
    return (
        heads[0][:short_head] == heads[1][:short_head]
        and tails[0][len(tails[0]) - short_tail :] == tails[1][len(tails[1]) - short_tail :]
    )


INSIDE, ABOVE = "inside", "above"


def _meet(given: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """`inside` where `given` may be `wanted` or below it, `above` where `wanted` may be below it."""
    if not wanted or wanted == ("**",):
        return INSIDE
    if not given:
        return ABOVE
    best = ""
    options: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    if wanted[0] == "**":
        options = ((given, wanted[1:]), (given[1:], wanted))
    elif given[0] in ("**", STAR + STAR):
        options = ((given[1:], wanted), (given, wanted[1:]))
    elif _components_meet(given[0], wanted[0]):
        options = ((given[1:], wanted[1:]),)
    else:
        return ""
    for rest_given, rest_wanted in options:
        result = _meet(rest_given, rest_wanted)
        if result == INSIDE:
            return INSIDE
        best = best or result
    return best


@dataclass(frozen=True, slots=True)
class PathSet:
    """Patterns of a task, ready to be compared.

    paths = PathSet.of(("/work/.eval/**",))
    paths.meet("/work/.e*/cases.json")         # "inside"
    """

    patterns: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> PathSet:
        return cls(tuple(_parts(pattern) for pattern in patterns))

    def meet(self, path: str) -> str:
        """`path` is absolute; `inside`, `above`, or empty."""
        given = tuple(part for part in path.split("/") if part)
        best = ""
        for pattern in self.patterns:
            result = _meet(given, pattern)
            if result == INSIDE:
                return INSIDE
            best = best or result
        return best

    def names(self) -> set[str]:
        """Parts of the protected paths that say what is there."""
        parts = {part for pattern in self.patterns for part in pattern}
        return {part for part in parts if re.search(r"\w", part)}


def _parts(pattern: str) -> tuple[str, ...]:
    parts = tuple(part for part in pattern.split("/") if part and part != ".")
    return parts if pattern.startswith(("/", "**")) else ("**", *parts)


def likely_cwds(patterns: Iterable[str]) -> tuple[str, ...]:
    """Directories above protected paths: where an agent's relative paths may begin."""
    found: dict[str, None] = {}
    for pattern in patterns:
        fixed = re.split(r"[*?\[]", pattern)[0].rstrip("/")
        parent = posixpath.dirname(fixed)
        while pattern.startswith("/") and parent not in ("/", ""):
            found[parent] = None
            parent = posixpath.dirname(parent)
    return tuple(sorted(found, key=lambda path: path.count("/")))
