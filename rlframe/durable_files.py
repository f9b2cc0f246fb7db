"""Files that are whole or absent, whatever kills the process that writes them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces `path` by `content`; a reader sees the old file or the new one, also after a crash.

    The temporary file is a sibling named for this process, so that two writers never share one.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable (a rename is not, until its directory is synced)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_directory(staging: Path, target: Path) -> None:
    """Flushes every file of `staging` to the disk and renames it to `target`, which it replaces."""
    for path in staging.iterdir():
        _flush(path)
    sync_directory(staging)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
