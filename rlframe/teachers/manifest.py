"""The manifest of teachers (`teachers.manifest=FILE`): who teaches what, and where its weights are.

    teachers:
      - name: arithmetic
        checkpoint: runs/expert_arithmetic/hf        # a Hugging Face directory
        domains: [chain_sum, products]               # or what stands before a domain's slash, or "*"
      - name: generalist
        url: http://10.0.0.7:30000                   # served outside of the run
        tokenizer: models/generalist                 # a URL's, to compare with the student's
        domains: ["*"]
        weight: 0.5                                  # in a mixture of teachers of one domain
      - name: large
        checkpoint: models/large
        domains: [proofs]
        engine_group: large                          # of teachers.groups

A domain is taught by the teachers that name it most exactly: itself, then the part before its slash, then
"*". There is one place for teachers, this file: no list of them in the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from rlframe.errors import UserError, nearest

KEY = "teachers.manifest"
EVERY_DOMAIN = "*"
DEFAULT_GROUP = "default"
APIS = ("sglang", "completions")


@dataclass(frozen=True, slots=True)
class Teacher:
    """One line of the manifest. Either `checkpoint` or `url` is given."""

    name: str
    domains: tuple[str, ...]
    checkpoint: str = ""
    url: str = ""
    weight: float = 1.0
    """Its share in a mixture is this over the sum of the weights of the domain's teachers."""
    engine_group: str = DEFAULT_GROUP
    api: str = "sglang"
    """Of a URL: SGLang's /generate, or an OpenAI completions server that echoes with logprobs."""
    model: str = ""
    """Its name at an OpenAI server."""
    tokenizer: str = ""
    """A URL's tokenizer directory; a checkpoint has its own."""
    api_key_variable: str = ""
    """The environment variable that holds a URL's key."""


@dataclass(frozen=True, slots=True)
class TeacherManifest:
    """The teachers in the file's order; names are unique."""

    path: str
    teachers: tuple[Teacher, ...]

    def __getitem__(self, name: str) -> Teacher:
        found = [t for t in self.teachers if t.name == name]
        if not found:
            raise UserError(
                f"{self.path}: there is no teacher '{name}'.{nearest(name, self.names)}"
            )
        return found[0]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(teacher.name for teacher in self.teachers)

    def of_domain(self, domain: str) -> tuple[Teacher, ...]:
        """Who teaches it, by the most exact of the names that match; empty: nobody."""
        for wanted in (domain, domain.partition("/")[0], EVERY_DOMAIN):
            found = tuple(t for t in self.teachers if wanted in t.domains)
            if found:
                return found
        return ()

    def check_domains(self, domains: Iterable[str]) -> list[str]:
        """UserError for a domain of the run that nobody teaches; the names of teachers that have none."""
        taught: set[str] = set()
        known = [d for t in self.teachers for d in t.domains]
        for domain in domains:
            teachers = self.of_domain(domain)
            if not teachers:
                raise UserError(
                    f"{KEY}: no teacher of {self.path} has the domain '{domain}' of the run."
                    f"{nearest(domain, known)}"
                )
            taught.update(t.name for t in teachers)
        return [name for name in self.names if name not in taught]


def read_manifest(path: str) -> TeacherManifest:
    """UserError with the line's name for anything that does not fit; no checkpoint is looked at yet."""
    try:
        described = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{KEY}={path} can't be read: {' '.join(str(error).split())}") from None
    return parse_manifest(described, path=path)


def parse_manifest(described: Any, *, path: str) -> TeacherManifest:
    """As `read_manifest`, of what a YAML file holds."""
    if not isinstance(described, Mapping) or not isinstance(described.get("teachers"), list):
        raise UserError(
            f"{KEY}={path}: must hold a list, `teachers: [{{name: ..., checkpoint: ..., domains: [...]}}]`"
        )
    for key in described:
        if key != "teachers":
            raise UserError(f"{path}: unknown key '{key}'.{nearest(str(key), ['teachers'])}")
    if not described["teachers"]:
        raise UserError(f"{path}: there is no teacher in it")
    teachers = tuple(_teacher(item, n, path) for n, item in enumerate(described["teachers"]))
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: {names.count(name)} teachers have the name '{name}'")
    return TeacherManifest(path, teachers)


def _teacher(item: Any, number: int, path: str) -> Teacher:
    where = f"{path}: teacher {number + 1}"
    if not isinstance(item, Mapping):
        raise UserError(f"{where}: must be a dictionary with name, checkpoint or url, and domains")
    known = [f.name for f in fields(Teacher)]
    for key in item:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'.{nearest(str(key), known)}")
    if isinstance(item.get("name"), str) and item["name"]:
        where = f"{path}: teacher '{item['name']}'"
    for f in fields(Teacher):
        if f.default is MISSING and f.name not in item:
            raise UserError(f"{where}: '{f.name}' is missing")
    given = dict(item)
    given["domains"] = _domains(given["domains"], where)
    given["weight"] = _weight(given.get("weight", 1.0), where)
    for name, value in given.items():
        if name not in ("domains", "weight") and not isinstance(value, str):
            raise UserError(f"{where}: {name}={value!r} must be text")
    teacher = Teacher(**given)
    _check_whole(teacher, where)
    return teacher


def _domains(value: Any, where: str) -> tuple[str, ...]:
    listed: Sequence[Any] = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(d, str) for d in listed):
        raise UserError(
            f'{where}: domains={value!r} must be a list of names, or ["{EVERY_DOMAIN}"] for all'
        )
    return tuple(listed)


def _weight(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UserError(f"{where}: weight={value!r} must be a number above 0")
    return float(value)


def _check_whole(teacher: Teacher, where: str) -> None:
    if not teacher.name or not teacher.name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{where}: name='{teacher.name}' must be letters, digits, _ and -")
    if bool(teacher.checkpoint) == bool(teacher.url):
        raise UserError(f"{where}: give it a checkpoint or a url, and not both")
    if teacher.api not in APIS:
        raise UserError(f"{where}: api={teacher.api} must be one of {', '.join(APIS)}")
    if teacher.checkpoint:
        for name in ("model", "tokenizer", "api_key_variable"):
            if getattr(teacher, name):
                raise UserError(f"{where}: {name} is for a url, a checkpoint has no use for it")
        return
    address = urlsplit(teacher.url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"{where}: url={teacher.url} must begin with http:// or https://")
    if teacher.api == "completions" and not teacher.model:
        raise UserError(f"{where}: api=completions needs model, the name of the model there")
