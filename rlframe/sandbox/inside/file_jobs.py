"""What touches files inside a sandbox, each in a forked child of the supervisor with its output as stdout."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Header = dict[str, Any]

CHUNK = 1 << 16


def read_file(header: Header, _: bytes) -> None:
    fd = os.open(header["path"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(fd).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "is a directory", header["path"])
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "is no regular file", header["path"])
    left = header["max_bytes"]
    while left and (data := os.read(fd, min(left, CHUNK))):
        write_all(1, data)
        left -= len(data)


def write_file(header: Header, payload: bytes) -> None:
    path = header["path"]
    os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
    fd = os.open(path, flags, header["mode"])
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "is no regular file", path)
    os.fchmod(fd, header["mode"])
    write_all(fd, payload)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def pack(header: Header, _: bytes) -> None:
    import tarfile

    os.chdir("/")
    with open(1, "wb") as out, tarfile.open(fileobj=out, mode="w|") as archive:
        for path in header["paths"]:
            archive.add(path.lstrip("/") or ".")


def unpack(header: Header, payload: bytes) -> None:
    import io
    import tarfile

    os.makedirs(header["directory"], exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(payload)) as archive:
        for member in archive:
            member.uid = member.gid = os.getuid()
            archive.extract(member, header["directory"], set_attrs=True, numeric_owner=True)


JOBS = {"read": read_file, "write": write_file, "pack": pack, "unpack": unpack}
