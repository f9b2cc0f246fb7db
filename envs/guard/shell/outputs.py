"""What simple commands print, where it can be told: what hides a word in base64, `rev` or `tr` is undone."""

from __future__ import annotations

import base64
import binascii
import codecs
import posixpath
import re
from collections.abc import Callable, Sequence

from envs.guard.paths import UNKNOWN, plain
from envs.guard.shell.words import unescaped

MAX_TEXT = 100_000
Known = Callable[[Sequence[str], str | None], str | None]


def known_output(name: str, args: Sequence[str], stdin: str | None) -> str | None:
    """None: nobody can tell."""
    reader = _READERS.get(name)
    if reader is None:
        return None
    try:
        found = reader(args, stdin)
    except (ValueError, IndexError, binascii.Error):
        return None
    return None if found is None else found[:MAX_TEXT]


def _echo(args: Sequence[str], _: str | None) -> str:
    words = list(args)
    escapes = False
    while words and re.fullmatch(r"-[neE]+", words[0]):
        escapes = escapes or "e" in words.pop(0)
    text = " ".join(words)
    return (unescaped(text) if escapes else text) + "\n"


def _printf(args: Sequence[str], _: str | None) -> str | None:
    if not args:
        return None
    form = unescaped(args[0])
    values = list(args[1:])
    pattern = re.compile(r"%[-0-9.]*([sdbcxqoi%])")
    if not pattern.search(form.replace("%%", "")):
        return form.replace("%%", "%")
    text = ""
    while True:

        def one(found: re.Match[str]) -> str:
            if found[1] == "%":
                return "%"
            value = values.pop(0) if values else ""
            return unescaped(value) if found[1] == "b" else value

        text += pattern.sub(one, form)
        if not values:
            return text


def _base64(args: Sequence[str], stdin: str | None) -> str | None:
    given = stdin
    if given is None or UNKNOWN in given:
        return None
    if not any(a in ("-d", "--decode", "-D", "-di", "-id") for a in args):
        return base64.b64encode(given.encode()).decode() + "\n"
    compact = re.sub(r"\s", "", given)
    return base64.b64decode(compact + "=" * (-len(compact) % 4)).decode("utf-8", "replace")


def _base32(args: Sequence[str], stdin: str | None) -> str | None:
    if stdin is None or not any(a in ("-d", "--decode") for a in args):
        return None
    return base64.b32decode(stdin.strip()).decode("utf-8", "replace")


def _openssl(args: Sequence[str], stdin: str | None) -> str | None:
    wanted = "base64" in args or "-base64" in args or "-a" in args
    return _base64(["-d"], stdin) if wanted and "-d" in args else None


def _xxd(args: Sequence[str], stdin: str | None) -> str | None:
    if stdin is None or not any("r" in a for a in args if a.startswith("-")):
        return None
    return bytes.fromhex(re.sub(r"\s", "", stdin)).decode("utf-8", "replace")


def _rev(_: Sequence[str], stdin: str | None) -> str | None:
    return None if stdin is None else "\n".join(line[::-1] for line in stdin.split("\n"))


def _tr(args: Sequence[str], stdin: str | None) -> str | None:
    if stdin is None:
        return None
    words = [_set(a) for a in args if not a.startswith("-")]
    if "-d" in args:
        return stdin.translate({ord(c): None for c in words[0]})
    old, new = words[0], words[1]
    new = new + new[-1] * max(len(old) - len(new), 0)
    return stdin.translate({ord(o): n for o, n in zip(old, new, strict=False)})


def _set(text: str) -> str:
    text = unescaped(plain(text))
    return re.sub(
        r"(.)-(.)", lambda m: "".join(map(chr, range(ord(m[1]), ord(m[2]) + 1))), text, flags=re.S
    )


def _sed(args: Sequence[str], stdin: str | None) -> str | None:
    scripts = [a for a in args if not a.startswith("-")]
    found = re.fullmatch(r"s(\W)(.*?)\1(.*?)\1g?", scripts[0], re.S) if scripts else None
    if stdin is None or not found:
        return None
    return stdin.replace(found[2], found[3])


def _same(_: Sequence[str], stdin: str | None) -> str | None:
    return stdin


def _rot13(_: Sequence[str], stdin: str | None) -> str | None:
    return None if stdin is None else codecs.encode(stdin, "rot13")


def _basename(args: Sequence[str], _: str | None) -> str:
    return posixpath.basename(args[0].rstrip("/"))


def _dirname(args: Sequence[str], _: str | None) -> str:
    return posixpath.dirname(args[0].rstrip("/")) or "."


def _last(args: Sequence[str], _: str | None) -> str | None:
    words = [a for a in args if not a.startswith("-")]
    return words[-1] if words else None


_READERS: dict[str, Known] = {
    "echo": _echo,
    "printf": _printf,
    "base64": _base64,
    "base32": _base32,
    "openssl": _openssl,
    "xxd": _xxd,
    "rev": _rev,
    "tr": _tr,
    "sed": _sed,
    "tee": _same,
    "sort": _same,
    "uniq": _same,
    "rot13": _rot13,
    "basename": _basename,
    "dirname": _dirname,
    "realpath": _last,
    "readlink": _last,
}
