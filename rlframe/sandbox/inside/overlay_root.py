"""Runs inside the sandbox, before anything of the attempt does: a root that may be written everywhere.

All that is written lies on one tmpfs of a fixed size, below overlays of the system's own directories or
of an image's root. What was there before is left by `pivot_root`, then all capabilities are dropped.
bubblewrap 0.8 has no overlays of its own; mounting them here needs a mount namespace of our own, since
bubblewrap's belongs to the user namespace around this one.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Settings = dict[str, Any]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x20000
PR_CAPBSET_DROP, PR_SET_DUMPABLE, PR_CAP_AMBIENT, CLEAR_ALL = 24, 4, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
DISK = "/run/disk"
ROOT = f"{DISK}/root"

libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _check(
        libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
        ),
        f"mount {target}",
    )


def overlay(lower: str, target: str, number: int) -> None:
    """`target` shows `lower`; what is written goes to the disk."""
    upper, work = f"{DISK}/upper/{number}", f"{DISK}/work/{number}"
    for directory in (upper, work, target):
        os.makedirs(directory, exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
    mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options)


def build(settings: Settings) -> None:
    """`settings`: disk_bytes, files, image, overlays, binds, directories, files_of_etc."""
    _check(libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    size = f"size={settings['disk_bytes']},nr_inodes={settings['files']},mode=755"
    mount("tmpfs", DISK, "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.mkdir(ROOT)
    if settings["image"]:
        overlay(settings["image"], ROOT, 0)
    else:
        mount(ROOT, ROOT, "none", MS_BIND)
        _system(settings)
    for name in ("proc", "dev"):
        os.makedirs(f"{ROOT}/{name}", exist_ok=True)
        mount(f"/{name}", f"{ROOT}/{name}", "none", MS_BIND | MS_REC)
    _limit_dev()
    for source, target in settings["binds"]:
        _bind(source, ROOT + target)
    for number, directory in enumerate(settings["directories"]):
        _writable(ROOT + directory, number)
    for directory in ("/tmp", "/var/tmp"):
        os.makedirs(ROOT + directory, exist_ok=True)
        os.chmod(ROOT + directory, 0o1777)
    if os.path.isdir("/run/model"):
        os.makedirs(f"{ROOT}/run/model", exist_ok=True)
        mount("/run/model", f"{ROOT}/run/model", "none", MS_BIND | MS_REC)


def _system(settings: Settings) -> None:
    """The machine's own directories and the few files of /etc that programs look for."""
    for number, directory in enumerate(settings["overlays"]):
        overlay(directory, ROOT + directory, number)
    for link, target in settings["links"]:
        os.symlink(target, ROOT + link)
    os.makedirs(f"{ROOT}/etc", exist_ok=True)
    for name, text in settings["etc"].items():
        with open(f"{ROOT}/etc/{name}", "w") as file:
            file.write(text)
    for name in os.listdir("/etc"):
        source, target = f"/etc/{name}", f"{ROOT}/etc/{name}"
        if os.path.isfile(source) and not os.path.exists(target):
            with open(source, "rb") as old, open(target, "wb") as new:
                new.write(old.read())


def _limit_dev() -> None:
    """/dev is a tmpfs of bubblewrap's without a size: what is written there goes to our disk."""
    shared = f"{DISK}/shm"
    os.mkdir(shared)
    os.chmod(shared, 0o1777)
    mount(shared, f"{ROOT}/dev/shm", "none", MS_BIND)
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV
    mount("none", f"{ROOT}/dev", "none", flags)


def _writable(target: str, number: int) -> None:
    """A directory of the attempt's own; what an image has there is copied, since it may be another's."""
    if not os.path.isdir(target):
        os.makedirs(target)
    elif not os.access(target, os.W_OK):
        import shutil

        copy = f"{DISK}/copies/{number}"
        shutil.copytree(target, copy, symlinks=True)
        mount(copy, target, "none", MS_BIND)


def _bind(source: str, target: str) -> None:
    """Read-only."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(source, target, "none", MS_BIND | MS_REC)
    # What bubblewrap mounted read-only stays so: the flag is locked in this namespace.


def enter() -> None:
    """Leave the old root for good."""
    os.chdir(ROOT)
    libc.syscall.restype = ctypes.c_long
    _check(libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """All, for ever; and nobody inside may trace or read this process."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, CLEAR_ALL, 0, 0, 0)
    header, data = _Header(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _check(libc.capset(ctypes.byref(header), data), "capset")
    _check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
