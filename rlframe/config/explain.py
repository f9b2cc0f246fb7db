"""Where a value comes from, what it means, its unit, and what is allowed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlframe.config import keys
from rlframe.config.compose import Composition, compose_layers
from rlframe.config.library_options import Option, options_of
from rlframe.config.passthrough import PASSTHROUGH, SECTIONS, find_option, library_of, owning_key
from rlframe.config.search import find_folders
from rlframe.config.values import shown

SCHEMA = "the default in rlframe/config/schema/"
OurDefaults = Callable[[str], Mapping[str, Any]]
"""From a pass-through knob (`rollout.engine_args`) to the defaults that rlframe itself gives its options."""


def explain(
    name: str,
    overrides: Sequence[str],
    *,
    config_dir: str | None = None,
    our_defaults: OurDefaults = lambda key: {},
) -> str:
    """A few lines about one key, a section, or an option that passes through. UserError if unknown."""
    known = keys.all_keys()
    if not name:
        return _all_keys()
    if name == "experiment":
        return f"experiment: a whole run in one file\n{_options(name, config_dir)}"
    composition = compose_layers(overrides, config_dir=config_dir)
    if name in known and known[name].section:
        options = [_options(name, config_dir)] if name in keys.GROUPS else []
        head = f"{name}: {known[name].help}"
        return "\n".join([head, *options, _children(name + ".", composition)])
    for prefix in (*sorted(SECTIONS, key=len, reverse=True), *PASSTHROUGH):
        if name.startswith(prefix + "."):
            return _explain_option(name, prefix, composition, our_defaults(prefix))
    keys.check_known(name)
    return _explain_knob(name, composition)


def _explain_knob(name: str, composition: Composition) -> str:
    key = keys.all_keys().get(name)
    value = _present(name, composition)
    lines = [f"{name} = {_laid_out(value)}", *_origin(name, composition)]
    if key is None:
        return "\n".join([*lines, "  means    passed on as it is"])
    lines.append(f"  means    {key.help}")
    if key.unit:
        lines.append(f"  unit     {key.unit}")
    lines += [f"  allowed  {keys.wanted(key)}", f"  default  {shown(key.default)}"]
    if name in PASSTHROUGH:
        library = PASSTHROUGH[name]
        lines.append(
            f"  options  {len(options_of(library))} of {library.shown}: `rlframe explain {name}.NAME`"
        )
    if name.startswith("algorithm."):
        lines.append(f"  only in  algorithm={', algorithm='.join(keys.algorithms_with(name))}")
    return "\n".join(lines)


def _explain_option(
    name: str, prefix: str, composition: Composition, ours: Mapping[str, Any]
) -> str:
    library = library_of(prefix)
    first = name.removeprefix(prefix + ".").split(".")[0]
    option = find_option(prefix, first)
    value = _present(name, composition)
    if first in library.owned:
        head = f"{name} follows from {owning_key(prefix, first)}"
        origin = [f"  set by   {owning_key(prefix, first)}"]
    elif first in library.fixed:
        head = f"{name} can't be set"
        origin = [f"  because  {library.fixed[first]}"]
    elif value is not None:
        head, origin = f"{name} = {shown(value)}", _origin(name, composition)
    elif first in ours:
        head = f"{name} = {shown(ours[first])}"
        origin = ["  from     rlframe's default for this option on this machine"]
    elif not option.type_text:
        head, origin = f"{name} is not set", []
    else:
        head = f"{name} = {option.default_text}"
        origin = [f"  from     the default of {library.shown}"]
    return "\n".join([head, *origin, *_described(option, library.shown)])


def _described(option: Option, library: str) -> list[str]:
    lines = [f"  means    {option.help or f'not said in the source of {library}'}"]
    if option.choices:
        lines.append(f"  allowed  one of {', '.join(map(str, option.choices))}")
    else:
        lines.append(f"  allowed  {option.type_text or 'anything'}")
    return [*lines, f"  default  {option.default_text or 'not set'} ({library})"]


def _present(name: str, composition: Composition) -> Any:
    value = OmegaConf.select(composition.raw, name)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _laid_out(value: Any) -> str:
    """A dictionary as YAML below the key, anything else on the key's line."""
    if not isinstance(value, dict) or not value:
        return shown(value)
    written = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=90)
    return "\n" + textwrap.indent(written.rstrip(), "    ")


def _options(group: str, config_dir: str | None) -> str:
    options = find_folders(config_dir).options_of(group)
    return f"  one of {', '.join(f'{group}={option}' for option in options)}"


def _origin(name: str, composition: Composition) -> list[str]:
    """The strongest that sets it (command line, then files, then the schema), and what it overrides."""
    found: list[tuple[str, Any]] = [(SCHEMA, None)] if name in keys.all_keys() else []
    for layer in composition.layers:
        sets, value = layer.value_of(name)
        if sets:
            found.append((layer.name, value))
    for given in composition.given:
        if not given.is_group and (given.key == name or name.startswith(given.key + ".")):
            found.append((f"the command line ({given.text})", given.value))
    if not found:
        return ["  from     nowhere: it is not set"]
    lines = [f"  from     {found[-1][0]}"]
    written = _written(name, composition)
    if written is not None:
        lines.append(f"  written  {written}")
    lines += [
        f"  instead  of {shown(value)} in {where}"
        for where, value in found[:-1][::-1]
        if where != SCHEMA
    ]
    return lines


def _written(name: str, composition: Composition) -> str | None:
    """The text with `${...}`, where the value is an interpolation."""
    node = OmegaConf.to_container(composition.raw, resolve=False)
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node if isinstance(node, str) and "${" in node else None


def _children(prefix: str, composition: Composition) -> str:
    """The keys right below, with their values; those of an algorithm that is not chosen are left out."""
    section = OmegaConf.select(composition.raw, prefix.rstrip("."))
    rows = []
    for name, key in keys.all_keys().items():
        last = name.removeprefix(prefix)
        if name.startswith(prefix) and "." not in last and last in section:
            value = (
                ""
                if key.section
                else f"  [{textwrap.shorten(shown(_present(name, composition)), 60)}]"
            )
            rows.append((name + "." * key.section, key.help + value))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _all_keys() -> str:
    known = keys.all_keys()
    width = max(len(name) for name in known)
    return "\n".join(
        f"{name + ('.' if key.section else ''):<{width}}  {key.help}" for name, key in known.items()
    )
