"""Values against the schema, each refusal naming where it stands, what was given and what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import BooleanNode, FloatNode, IntegerNode, StringNode, ValueNode
from omegaconf.errors import ValidationError

from rlframe.config import keys
from rlframe.errors import UserError

_NODES: Mapping[str, Callable[..., ValueNode]] = {
    "int": IntegerNode,
    "float": FloatNode,
    "bool": BooleanNode,
    "str": StringNode,
}


def check_tree(name: str, value: Any, *, where: str = "") -> None:
    """A value, or a dictionary of values, that a file or the command line gives to `name`.

    `where` begins each message (`my.yaml: `). Values that are interpolations are checked only after
    composition, by `check_values`.
    """
    if keys.is_free_form(name):
        return
    key = keys.all_keys().get(name)
    if key is None and name:
        raise UserError(f"{where}{keys.unknown_key(name)}")
    if key is not None and not key.section and not key.free_form:
        check_leaf(key, value, where=where)
        return
    if not isinstance(value, Mapping):
        raise UserError(f"{where}{name}={shown(value)}: must be {_section_wants(key)}")
    for part, below in value.items():
        if not isinstance(part, str):
            raise UserError(f"{where}{name}: the name {part!r} is not text; quote it")
        check_tree(f"{name}.{part}" if name else part, below, where=where)


def check_leaf(key: keys.Key, value: Any, *, where: str = "") -> Any:
    """`value` as the knob's type; UserError where it is of another, or outside of what is allowed."""
    if isinstance(value, str) and "${" in value:
        return value
    given = f"{where}{key.name}={shown(value)}"
    try:
        converted = _convert(key, value)
    except (ValidationError, ValueError):
        raise UserError(f"{given}: must be {keys.wanted(key)}{_yaml_hint(key, value)}") from None
    outside = (
        (key.allowed and converted not in key.allowed)
        or (key.type_name == "float" and not math.isfinite(converted))
        or (key.minimum is not None and converted < key.minimum)
        or (key.maximum is not None and converted > key.maximum)
    )
    if outside:
        hint = _nearest_choice(key, converted) or _yaml_hint(key, value)
        raise UserError(f"{given}: must be {keys.wanted(key)}{hint}")
    return converted


def check_values(config: Any, prefix: str = "") -> None:
    """Every knob of a composed configuration, its interpolations resolved."""
    for item in dataclasses.fields(config):
        name, value = prefix + item.name, getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check_values(value, name + ".")
        elif not keys.all_keys()[name].free_form:
            check_leaf(_key_of(config, item, name), value)


def shown(value: Any) -> str:
    """As a person would have typed it on the command line or in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and value else repr(value)


def _key_of(config: Any, item: dataclasses.Field[Any], name: str) -> keys.Key:
    """`algorithm.name` is a knob of each algorithm, with another choice in each."""
    key = keys.all_keys()[name]
    return dataclasses.replace(key, allowed=item.metadata.get("allowed", ()))


def _convert(key: keys.Key, value: Any) -> Any:
    if value is None or (isinstance(value, bool) and key.type_name != "bool"):
        raise ValueError
    if key.type_name == "list":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError
        return value
    node = _NODES[key.type_name](value=value, is_optional=False)
    return node._value()


def _section_wants(key: keys.Key | None) -> str:
    if key is not None and key.free_form:
        return "a dictionary, such as {name: value}"
    return "a section of keys"


def _yaml_hint(key: keys.Key, value: Any) -> str:
    """YAML 1.1 reads more words as booleans than one thinks."""
    if key.type_name == "str" and isinstance(value, bool):
        return " (YAML reads on, off, yes and no without quotes as true and false: quote it)"
    return ""


def _nearest_choice(key: keys.Key, value: Any) -> str:
    close = difflib.get_close_matches(str(value), map(str, key.allowed), n=1, cutoff=0.7)
    return f". Did you mean '{close[0]}'?" if close else ""
