"""What an attempt leaves behind, as plain files: the only thing of it that a verifier's sandbox sees.

Links, devices, absolute names, `..` and whatever the task does not accept are refused and named.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Artifacts:
    """By absolute path."""

    files: Mapping[str, bytes]
    modes: Mapping[str, int]
    refused: tuple[str, ...] = ()
    """Names that were not taken."""

    def archive(self) -> bytes:
        """A tar archive with names relative to `/`; the same bytes for the same files."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in sorted(self.files):
                member = tarfile.TarInfo(path.lstrip("/"))
                member.size, member.mode = len(self.files[path]), self.modes[path]
                archive.addfile(member, io.BytesIO(self.files[path]))
        return buffer.getvalue()


@dataclass(slots=True)
class _Taken:
    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def artifacts_of(archive: bytes, accept: Callable[[str], bool]) -> Artifacts:
    """The regular files of a snapshot that the task accepts. ValueError for what is no archive."""
    taken = _Taken()
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            for member in opened:
                _take(opened, member, accept, taken)
    except tarfile.TarError as error:
        raise ValueError(f"the snapshot is no archive: {error}") from error
    return Artifacts(taken.files, taken.modes, tuple(taken.refused))


def _take(
    opened: tarfile.TarFile,
    member: tarfile.TarInfo,
    accept: Callable[[str], bool],
    taken: _Taken,
) -> None:
    if member.isdir():
        return
    path = posixpath.normpath("/" + member.name.lstrip("/"))
    plain = member.isreg() and ".." not in member.name.split("/")
    if not plain or not accept(path):
        taken.refused.append(member.name)
        return
    content = opened.extractfile(member)
    assert content is not None
    taken.files[path] = content.read()
    taken.modes[path] = member.mode & 0o755


def tar_of(files: Mapping[str, bytes], *, modes: Mapping[str, int] | None = None) -> bytes:
    """A tar archive of files by absolute path."""
    return Artifacts(files, {path: (modes or {}).get(path, 0o644) for path in files}).archive()
