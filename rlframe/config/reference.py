"""All keys as Markdown, from the schema: docs/configuration_reference.md."""

from __future__ import annotations

from collections.abc import Iterator

from rlframe.config import keys
from rlframe.config.passthrough import PASSTHROUGH
from rlframe.config.values import shown

HEAD = """# All keys

Made by `rlframe config --reference > docs/configuration_reference.md` from `rlframe/config/schema/`; a test
compares the two. `rlframe explain KEY` says the same of one key, with its present value and its source.
"""


def reference_table() -> str:
    """One table a section."""
    known = keys.all_keys()
    sections = ["", *(name for name, key in known.items() if key.section)]
    return HEAD + "".join(_section(name) for name in sections)


def _section(section: str) -> str:
    prefix = section + "." if section else ""
    rows = [
        key
        for name, key in keys.all_keys().items()
        if name.startswith(prefix) and "." not in name[len(prefix) :] and not key.section
    ]
    if not rows:
        return ""
    title = f"`{section}`" if section else "The run"
    about = f"\n{keys.all_keys()[section].help}\n" if section else ""
    table = "".join(_row(key) for key in rows)
    return f"\n## {title}\n{about}\n| key | default | what it is | allowed |\n| --- | --- | --- | --- |\n{table}"


def _row(key: keys.Key) -> str:
    cells = (f"`{key.name}`", _code(shown(key.default)), _meaning(key), _allowed(key))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _meaning(key: keys.Key) -> str:
    return "; ".join(_meanings(key))


def _meanings(key: keys.Key) -> Iterator[str]:
    yield key.help
    if key.unit:
        yield f"in {key.unit}"
    owners = keys.algorithms_with(key.name) if key.name.startswith("algorithm.") else []
    if owners and len(owners) < len(keys.ALGORITHMS):
        yield "only " + ", ".join(f"`algorithm={owner}`" for owner in owners)


def _allowed(key: keys.Key) -> str:
    if key.name in PASSTHROUGH:
        return f"options of {PASSTHROUGH[key.name].distribution}"
    return keys.wanted(key)


def _code(text: str) -> str:
    return f"`{text}`" if text != "''" else "empty"
