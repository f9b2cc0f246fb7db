"""Commands that bring something from elsewhere: downloads, package managers, the GitHub CLI."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from envs.guard.facts import Contact, Fact, Packages
from envs.guard.paths import plain

if TYPE_CHECKING:
    from envs.guard.shell.command import Command

_HOST = re.compile(r"^[\w.-]+\.[a-z]{2,}(?:[:/]|$)|^localhost|^\d+\.\d+\.\d+\.\d+", re.I)
WITH_VALUE = (
    "-o", "-O", "-H", "-d", "-X", "-A", "-u", "-e", "-b", "-c", "-F", "-T", "-m", "-w", "-x", "-P",
    "--output", "--header", "--data", "--request", "--user-agent", "--user", "--max-time",
)  # fmt: skip


def _urls(command: Command) -> list[Fact]:
    """curl, wget and their like."""
    facts: list[Fact] = []
    skip = False
    for word in map(plain, command.args):
        if skip and not re.search(r"://", word):
            skip = False
            continue
        skip = word in WITH_VALUE and not (command.name != "curl" and word == "-O")
        if command.name == "curl" and word == "-O":
            skip = False
        if re.search(r"://", word) or (not word.startswith("-") and _HOST.search(word)):
            facts.append(
                Contact(word.partition("=")[2] if word.startswith("--") else word, command.name)
            )
        if re.search(r"[*]", word) and not facts and "/" in word:
            facts.append(Contact(word, command.name))
    return facts


def _words(command: Command) -> list[str]:
    return [
        plain(w) for w in command.operands(with_value=("-d", "-i", "-r", "-t", "-c", "-f", "-p"))
    ]


def _pip(command: Command) -> list[Fact]:
    words = _words(command)
    if command.name == "uv" and words[:1] == ["pip"]:
        words = words[1:]
    if not words:
        return []
    verb, names = words[0], words[1:]
    facts: list[Fact] = [Contact(n, f"pip {verb}") for n in names if "://" in n]
    wanted = tuple(n for n in names if "://" not in n)
    if verb in ("install", "download", "wheel", "add", "index"):
        facts.append(Packages("pip", wanted))
    elif verb in ("show", "cache", "inspect", "uninstall"):
        facts.append(Packages(f"pip {verb}", wanted, local=True))
    for url in command.option("--index-url", "-i", "--extra-index-url", "--find-links", "-f"):
        facts.append(Contact(plain(url), "pip"))
    return facts


def _packages(command: Command) -> list[Fact]:
    words = _words(command)
    if not words:
        return []
    fetching = {
        "install",
        "add",
        "get",
        "source",
        "download",
        "pack",
        "i",
        "view",
        "fetch",
        "clone",
    }
    if words[0] not in fetching:
        return []
    urls: list[Fact] = [Contact(w, command.name) for w in words[1:] if re.search(r"://|\.\w+/", w)]
    return [*urls, Packages(command.name, tuple(words[1:]))]


def _gh(command: Command) -> list[Fact]:
    words = [plain(a) for a in command.args]
    found = [w for w in words if re.fullmatch(r"(?:repos/|/repos/)?[\w.-]+/[\w.-]+(?:/.*)?", w)]
    repositories = [plain(v) for v in command.option("--repo", "-R")]
    search = [" ".join(words)] if words[:1] == ["search"] else []
    targets = [
        f"github.com/{r.removeprefix('/').removeprefix('repos/')}" for r in {*found, *repositories}
    ]
    return [Contact(t, "gh") for t in [*targets, *search]] or [Contact("github.com", "gh")]


def _remote(command: Command) -> list[Fact]:
    """ssh, nc, dig, ftp: a host stands among the words."""
    return [Contact(plain(w), command.name) for w in command.operands() if re.search(r"[.@:]", w)]


Fetcher = Callable[["Command"], list[Fact]]
FETCHERS: dict[str, Fetcher] = {
    **dict.fromkeys(
        ("curl", "wget", "http", "https", "aria2c", "lynx", "w3m", "links", "axel", "httpie", "xh"), _urls
    ),
    **dict.fromkeys(("pip", "pip3", "pipx", "uv", "poetry", "pipenv", "easy_install"), _pip),
    **dict.fromkeys(
        ("conda", "mamba", "npm", "yarn", "pnpm", "gem", "cargo", "go", "apt", "apt-get", "dnf", "yum",
         "apk", "brew", "composer"),
        _packages,
    ),
    **dict.fromkeys(("ssh", "nc", "ncat", "telnet", "dig", "nslookup", "ftp", "sftp", "host"), _remote),
    **dict.fromkeys(("gh", "hub", "glab"), _gh),
    **dict.fromkeys(("svn", "hg", "bzr"), _remote),
}  # fmt: skip
