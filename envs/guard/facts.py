"""What a tool call does, as far as it can be told without running it: the language between readers and rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Access(StrEnum):
    """What is done with a path."""

    READ = "read"
    WRITE = "write"
    """Made, changed, moved or removed."""
    RUN = "run"
    LIST = "list"
    """Its name or a directory's names are asked for."""


@dataclass(frozen=True, slots=True)
class Touch:
    """A path is used. It may hold wildcards (`envs.guard.paths`)."""

    path: str
    access: Access
    by: str
    """The command or function that does it."""
    cwds: tuple[str, ...] = ()
    """Where a relative path may begin."""
    recursive: bool = False
    """Everything below is read too."""
    excludes: tuple[str, ...] = ()
    """Name patterns that a recursive reader leaves out."""
    content: str | None = None
    """Of a write: what is put there, where it is known."""
    certain: bool = True
    """False: the path only stands in a text (a string in code), nobody can tell what becomes of it."""


@dataclass(frozen=True, slots=True)
class Contact:
    """Another host is asked."""

    target: str
    """URL, host, or `owner/name` of a repository."""
    by: str


@dataclass(frozen=True, slots=True)
class Packages:
    """A package manager fetches these."""

    manager: str
    names: tuple[str, ...]
    local: bool = False
    """An own cache or installation is looked at, not a server."""


@dataclass(frozen=True, slots=True)
class GitUse:
    """git is run."""

    verb: str
    words: tuple[str, ...]
    """What follows the verb."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """Files are looked for by name, anywhere below a directory."""

    patterns: tuple[str, ...]
    root: str
    by: str
    cwds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """A web search."""

    text: str


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment variable is set (`lasting`: beyond one command)."""

    name: str
    value: str
    lasting: bool


@dataclass(frozen=True, slots=True)
class Peek:
    """An environment variable is read."""

    name: str


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something in code or in a command line that is a hack in itself."""

    category: str
    why: str


@dataclass(frozen=True, slots=True)
class Inspects:
    """Code asks for the source of an installed module."""

    module: str
    by: str


@dataclass(frozen=True, slots=True)
class Borrowed:
    """A solution's file imports a module, or opens data: its path."""

    path: str
    cwds: tuple[str, ...] = ()


Fact = (
    Borrowed
    | Inspects
    | Touch
    | Contact
    | Packages
    | GitUse
    | Hunt
    | Query
    | Setting
    | Peek
    | Suspicion
)


@dataclass(slots=True)
class Memory:
    """What the guard remembers of one attempt: only what earlier calls may have left behind."""

    cwds: tuple[str, ...] = ()
    """Where the agent may be; relative paths are tried against each."""
    variables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    """Symlinks that the agent has made: absolute path to target."""
    tainted: set[str] = field(default_factory=set)
    """Absolute paths that may hold protected content, with all that is below them."""
    written: dict[str, str] = field(default_factory=dict)
    """Small files that the agent wrote: absolute path to content."""
    git_peeked: bool = False
    """Commits that are not in HEAD's history were asked for."""
