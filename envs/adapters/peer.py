"""Which Python has a package that an adapter adapts: ours, or one of its own.

Packages of environments pin what conflicts with our pins and with each other's: `scripts/install_peers.py` puts
each into `.peers/NAME`. What has to run in there is a file of `envs/adapters/inside`, which imports nothing of
ours.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from rlframe.errors import UserError

DIRECTORY = ".peers"
PEERS = ("gymnasium", "mcp", "verifiers", "openenv", "swebench")
ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside")


def peer_python(name: str) -> str:
    """The interpreter that `scripts/install_peers.py` made; empty where there is none."""
    found = ROOT / DIRECTORY / name / "bin" / "python"
    return str(found) if found.exists() else ""


def python_with(package: str, given: str = "", *, key: str = "env.args.python") -> str:
    """`given`, or our own, or the peer's; UserError where none of them is there."""
    if given:
        if not os.access(given, os.X_OK):
            raise UserError(f"{key}={given}: there is no such program")
        return given
    if importlib.util.find_spec(package) is not None:
        return sys.executable
    found = peer_python(package)
    if not found:
        raise UserError(
            f"{package} is not installed: `python scripts/install_peers.py {package}`, or {key}="
            "the path of a Python that has it"
        )
    return found


def own_environment() -> dict[str, str]:
    """Ours, without what would lead another Python to our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in ours}
