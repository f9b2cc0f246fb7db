"""What the rules say of a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that may be a hack."""

    category: str
    why: str
    certain: bool = False
    """Against the task's rules as they are written, whatever it is meant for."""
    path: str = ""
    """What it is about, for the dummy."""
    by: str = ""
    """Which command or tool does it."""
    writes: bool = False
