"""Which packages, where their parts lie in the sdist, and under which licence."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rlframe.errors import UserError

BUILD = "`.venv/bin/python scripts/build_code_repair.py` makes it"


@dataclass(frozen=True, slots=True)
class Package:
    """An sdist of PyPI; paths are relative to its folder."""

    name: str
    version: str
    sdist: str
    sha256: str
    licence: str
    """SPDX."""
    upstream: str
    source: str
    """What is on the import path."""
    modules: Mapping[str, tuple[str, ...]]
    """A file that may be mutated -> the tests that are run for it."""
    hidden: tuple[str, ...]
    """Beginnings of paths that the agent does not see: tests, and what was built from the source."""

    @property
    def editable(self) -> tuple[str, ...]:
        """Beginnings of paths in which an agent's changes are taken over for grading."""
        return tuple(
            {path.split("/")[0] if self.source == "." else self.source for path in self.modules}
        )

    def is_hidden(self, path: str) -> bool:
        return any(path == h or path.startswith(h.rstrip("/") + "/") for h in self.hidden)


def _package(
    name: str,
    version: str,
    sha256: str,
    licence: str,
    upstream: str,
    modules: Mapping[str, tuple[str, ...]],
    hidden: tuple[str, ...],
    source: str = ".",
) -> Package:
    sdist = f"{name}-{version}.tar.gz"
    return Package(name, version, sdist, sha256, licence, upstream, source, modules, hidden)


PACKAGES = {
    package.name: package
    for package in (
        _package(
            "boltons", "24.0.0", "7153feccaea1ff2e1472f68d4b57fadb796a2ee49d29f638f1c9cd8fb5ebd916", "BSD-3-Clause", "github.com/mahmoud/boltons",
            {f"boltons/{m}.py": (f"tests/test_{m}.py",)
             for m in ("strutils", "iterutils", "dictutils", "setutils", "timeutils", "queueutils",
                       "mathutils", "listutils")},
            ("tests", "boltons.egg-info"),
        ),
        _package(
            "cachetools", "5.3.3", "ba29e2dfa0b8b556606f097407ed1aa62080ee108ab0dc5ec9d6a723a007d105", "MIT", "github.com/tkem/cachetools",
            {"src/cachetools/__init__.py": ("tests",), "src/cachetools/keys.py": ("tests/test_keys.py",)},
            ("tests", "src/cachetools.egg-info"), "src",
        ),
        _package(
            "inflection", "0.5.1", "1a29730d366e996aaacffb2f1f1cb9593dc38e2ddd30c91250c6dde09ea9b417", "MIT", "github.com/jpvanhal/inflection",
            {"inflection/__init__.py": ("test_inflection.py",)},
            ("test_inflection.py", "inflection.egg-info"),
        ),
        _package(
            "jmespath", "1.0.1", "90261b206d6defd58fdd5e85f478bf633a2901798906be2ad389150c5c60edbe", "MIT", "github.com/jmespath/jmespath.py",
            {f"jmespath/{m}.py": ("tests",) for m in ("lexer", "parser", "visitor", "functions")},
            ("tests", "jmespath.egg-info"),
        ),
        _package(
            "mistune", "3.0.2", "fc7f93ded930c92394ef2cb6f04a8aabab4117a91449e72dcc8dfa646a508be8", "BSD-3-Clause", "github.com/lepture/mistune",
            {f"src/mistune/{m}.py": ("tests/test_commonmark.py", "tests/test_misc.py", "tests/test_syntax.py")
             for m in ("block_parser", "inline_parser", "list_parser", "util", "helpers")},
            ("tests", "src/mistune.egg-info"), "src",
        ),
        _package(
            "parse", "1.20.2", "b41d604d16503c79d81af5165155c0b20f6c8d6c559efa66b4b695c3e5a0a0ce", "MIT", "github.com/r1chardj0n3s/parse",
            {"parse.py": ("tests",)}, ("tests", "parse.egg-info"),
        ),
        _package(
            "roman", "4.2", "05f335a1b2b0824f827ed42fff84b35909aab9013799145ed4508bdd4fa3b385", "ZPL-2.1", "github.com/zopefoundation/roman",
            {"src/roman.py": ("src/tests.py",)}, ("src/tests.py", "src/roman.egg-info"), "src",
        ),
        _package(
            "schema", "0.7.7", "7da553abd2958a19dc2547c388cde53398b39196175a9be59ea1caf5ab0a1807", "MIT", "github.com/keleshev/schema",
            {"schema.py": ("test_schema.py",)}, ("test_schema.py", "schema.egg-info"),
        ),
        _package(
            "semver", "3.0.2", "6253adb39c70f6e51afed2fa7152bcd414c411286088fb4b9effb133885ab4cc", "BSD-3-Clause", "github.com/python-semver/python-semver",
            {"src/semver/version.py": ("tests",)}, ("tests", "src/semver.egg-info"), "src",
        ),
        _package(
            "toolz", "0.12.1", "ecca342664893f177a13dac0e6b41cbd8ac25a358e5f215316d43e2100224f4d", "BSD-3-Clause", "github.com/pytoolz/toolz",
            {f"toolz/{m}.py": (f"toolz/tests/test_{m}.py",) for m in ("itertoolz", "dicttoolz", "functoolz", "recipes")},
            ("toolz/tests", "toolz.egg-info"),
        ),
        _package(
            "xmltodict", "0.13.0", "341595a488e3e01a85a9d8911d8912fd922ede5fecc4dce437eb4b6c8d037e56", "MIT", "github.com/martinblech/xmltodict",
            {"xmltodict.py": ("tests",)}, ("tests", "xmltodict.egg-info"),
        ),
    )
}  # fmt: skip


@lru_cache(maxsize=32)
def sdist_files(directory: str, name: str) -> Mapping[str, bytes]:
    """The sdist's regular files by path, without its folder. UserError where it is absent or another."""
    package = PACKAGES[name]
    path = Path(directory) / package.sdist
    if not path.is_file():
        raise UserError(f"code_repair: there is no '{path}': {BUILD}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise UserError(f"code_repair: '{path}' has SHA-256 {found}, not {package.sha256}: {BUILD}")
    files: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            _, _, inner = member.name.partition("/")
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None and inner:
                files[inner] = content.read()
    return files
