"""torch compiles an operator under a lock file, and waits for one that is there for ever. Who was killed in the middle of
it (a cut-off run, a start that took too long) leaves his behind, and every later run would stand still without a word.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

MOST_S = 60.0
"""Between a lock and the first compiler, with much to spare."""


def builds_of(operator: str) -> list[Path]:
    """Where torch builds it, for any Python and accelerator."""
    from torch.utils.cpp_extension import get_default_build_root

    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return [Path(given) / operator]
    return sorted(Path(get_default_build_root()).glob(f"*/{operator}"))


def remove_abandoned_lock(build: Path, *, now: float | None = None) -> bool:
    """Of the operator built in this directory (`torch.utils.cpp_extension`): True where a lock was there that nobody
    works under any more. Compilers work in the directory itself."""
    lock = build / "lock"
    try:
        age_s = (now or time.time()) - lock.stat().st_mtime
    except FileNotFoundError:
        return False
    if age_s < MOST_S or _is_worked_in(build):
        return False
    lock.unlink(missing_ok=True)
    return True


def _is_worked_in(directory: Path) -> bool:
    wanted = str(directory.resolve())
    for process in psutil.process_iter():
        try:
            if process.cwd() == wanted:
                return True
        except psutil.Error:
            continue  # ended meanwhile, or another user's: its lock would not be ours to remove
    return False
