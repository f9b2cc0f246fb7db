"""The dotted names of all knobs, from the schema alone."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_origin, get_type_hints

from rlframe.config.schema import OpdConfig, PpoConfig, RunConfig, SftConfig, ValueConfig
from rlframe.errors import UserError

GROUPS = (
    "model",
    "trainer",
    "rollout",
    "env",
    "algorithm",
    "guard",
    "cluster",
    "sync",
    "logging",
    "eval",
    "experiment",
)
ALGORITHMS: dict[str, type] = {
    "ppo": PpoConfig,
    "opd": OpdConfig,
    "sft": SftConfig,
    "value": ValueConfig,
}
TYPE_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a dictionary",
    "list": "a list, such as [a,b]",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One knob, or a section of knobs (`fields` set)."""

    name: str
    type_name: str
    default: Any
    help: str
    unit: str
    allowed: tuple[Any, ...]
    minimum: float | None
    maximum: float | None
    section: bool
    free_form: bool
    """A dictionary: what stands below it is somebody else's (SGLang, Megatron, an environment)."""


@cache
def all_keys() -> Mapping[str, Key]:
    """Every knob and section by its dotted name; the algorithms' knobs all stand under `algorithm`."""
    found = dict(_walk(RunConfig, ""))
    for algorithm in ALGORITHMS.values():
        for name, key in _walk(algorithm, "algorithm."):
            both = found.setdefault(name, key)
            if name == "algorithm.name":
                found[name] = dataclasses.replace(both, allowed=tuple(ALGORITHMS))
    return found


def algorithms_with(name: str) -> list[str]:
    """The algorithms that have the knob `algorithm.NAME`."""
    return [
        algorithm
        for algorithm, cls in ALGORITHMS.items()
        if name.removeprefix("algorithm.") in {f.name for f in dataclasses.fields(cls)}
    ]


def _walk(cls: type, prefix: str) -> Iterator[tuple[str, Key]]:
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        name = prefix + item.name
        hint = hints[item.name]
        section = dataclasses.is_dataclass(hint) or item.name == "algorithm"
        yield name, _key(name, item, hint, section=section)
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _walk(hint, name + ".")


def _key(name: str, item: dataclasses.Field[Any], hint: Any, *, section: bool) -> Key:
    metadata = item.metadata
    default = item.default
    if default is dataclasses.MISSING:
        assert item.default_factory is not dataclasses.MISSING
        default = item.default_factory()
    doc = (hint.__doc__ or "").strip().splitlines()[0] if section and hint is not Any else ""
    origin = get_origin(hint)
    free_form = origin is dict
    return Key(
        name=name,
        type_name=origin.__name__
        if origin in (dict, list)
        else getattr(hint, "__name__", str(hint)),
        default=default,
        help=metadata.get("help", doc),
        unit=metadata.get("unit", ""),
        allowed=metadata.get("allowed", ()),
        minimum=metadata.get("minimum"),
        maximum=metadata.get("maximum"),
        section=section,
        free_form=free_form,
    )


def unknown_key(name: str) -> UserError:
    """The error for a name that is no knob, with the nearest valid ones."""
    return UserError(f"unknown key '{name}'.{_nearest_keys(name)}")


def _nearest_keys(name: str) -> str:
    """Nearest over whole dotted names: same last part first (`engines`), then a like one (`engins`)."""
    known = [*all_keys(), *GROUPS]
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    last = name.rsplit(".", 1)[-1]
    like = difflib.get_close_matches(last, by_last, n=2, cutoff=0.7)
    candidates = {key for part in like[: 1 if last in by_last else 2] for key in by_last[part]}
    candidates.update(difflib.get_close_matches(name, known, n=2, cutoff=0.8))
    if not candidates:
        return " `rlframe explain` lists all keys."
    ranked = sorted(candidates, key=lambda key: (-_likeness(name, key), key))
    best = _likeness(name, ranked[0])
    shown = [key for key in ranked[:3] if _likeness(name, key) >= best - 0.1]
    return f" Did you mean {' or '.join(repr(key) for key in shown)}?"


def _likeness(name: str, key: str) -> float:
    """Of two dotted names, the last part counting as much as the whole."""
    whole = difflib.SequenceMatcher(None, name, key).ratio()
    last = difflib.SequenceMatcher(None, name.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1]).ratio()
    return whole + last


def wanted(key: Key) -> str:
    """What may be given, in words: `an integer, at least 1`."""
    if key.section:
        return "a section: its keys are set one by one"
    if key.allowed:
        return "one of " + ", ".join(str(choice) for choice in key.allowed)
    kind = TYPE_WORDS[key.type_name]
    if key.minimum is not None and key.maximum is not None:
        return f"{kind} from {key.minimum:g} to {key.maximum:g}"
    if key.minimum is not None:
        return f"{kind}, at least {key.minimum:g}"
    if key.maximum is not None:
        return f"{kind}, at most {key.maximum:g}"
    return kind


def is_free_form(name: str) -> bool:
    """The name lies below a dictionary whose keys are somebody else's."""
    known = all_keys()
    parts = name.split(".")
    above = [known.get(".".join(parts[:end])) for end in range(1, len(parts))]
    return any(key is not None and key.free_form for key in above)


def check_known(name: str) -> None:
    """Raises UserError unless `name` is a knob or lies below a free-form one."""
    if name not in all_keys() and not is_free_form(name):
        raise unknown_key(name)
