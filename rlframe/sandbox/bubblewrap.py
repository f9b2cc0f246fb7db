"""bubblewrap's command line, and who runs inside: never a root user of this machine.

Where we are root, the sandbox's processes get an unprivileged user id of their own: root without
capabilities still owns `/proc/sys/kernel/core_pattern` and `/dev/null`. What that user may not read for
its place (a Python below /root) is bound to a stage in a mount namespace of the sandbox's own first.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlframe.errors import UserError

UID = "1000"
"""Inside."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt")
ETC = (
    "passwd",
    "group",
    "hosts",
    "nsswitch.conf",
    "ssl",
    "ca-certificates",
    "alternatives",
    "localtime",
)
INSIDE = Path(__file__).with_name("inside")
OUTER_UIDS = range(61184, 65520)
"""What systemd keeps for users that come and go."""
STAGE = "/run/rlframe-stage"

Binds = Sequence[tuple[str, str, str]]
"""`--ro-bind` or `--bind`, path outside, path inside."""


def find_bubblewrap() -> str:
    """UserError where it is missing."""
    found = shutil.which("bwrap")
    if found is None:
        raise UserError(
            "bubblewrap is not installed, and agent programs run in its sandbox: "
            "`apt-get install bubblewrap`"
        )
    return found


def command_line(
    binds: Binds,
    more: Sequence[str] = (),
    *,
    before: Sequence[str] = (),
    user: int | None = None,
    join: Sequence[str] = (),
) -> list[str]:
    """bubblewrap with namespaces of its own for everything, no user namespaces inside, `binds`, and
    `more` of its options (`before`: ahead of the binds); the command comes behind.

    `user`: whom it runs as (`outer_uid`). `join`: cgroup directories to go into first.
    """
    launch, binds = _as_nobody(binds, join, outer_uid() if user is None else user)
    return [
        *launch,
        find_bubblewrap(),
        *("--unshare-user", "--unshare-all", "--disable-userns"),
        *("--die-with-parent", "--new-session", "--uid", UID, "--gid", UID),
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"),
        *before,
        *(word for bind in binds for word in bind),
        *more,
    ]


def outer_uid() -> int:
    """Whom a sandbox started by us runs as, seen from outside; another one for every call by root."""
    return os.geteuid() or random.choice(OUTER_UIDS)


def hand_over(path: Path, user: int) -> None:
    """Everything below becomes the sandbox's user's, where we may give away."""
    if os.geteuid() != 0 or not path.exists():
        return
    os.chown(path, user, user)
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            os.chown(os.path.join(directory, name), user, user, follow_symlinks=False)


def read_only(paths: Iterable[str]) -> list[tuple[str, str, str]]:
    """Binds of those that exist, at the same place, without any that lies within another; symbolic
    links count as what they are."""
    existing = sorted({path for path in paths if os.path.exists(path)})
    kept: list[str] = []
    for path in existing:
        if not any(path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return [("--ro-bind", path, path) for path in kept]


def system_python() -> tuple[str, list[str]]:
    """A Python that runs inside, and the directories that it needs besides the system's own."""
    system = "/usr/bin/python3"
    if os.path.exists(system):
        return system, []
    return os.path.realpath(sys.executable), [sys.base_prefix]


def _as_nobody(binds: Binds, join: Sequence[str], user: int) -> tuple[list[str], Binds]:
    """What comes before bubblewrap, and its binds with hidden sources replaced by the stage's."""
    joins = [f"echo 0 > {shlex.quote(f'{directory}/cgroup.procs')}" for directory in join]
    if os.geteuid() != 0:
        return _script(joins, "") if joins else [], binds
    hidden = [b for b in binds if not _open_to_all(b[1])]
    staged = {bind: f"{STAGE}/{number}" for number, bind in enumerate(hidden)}
    if hidden:
        os.makedirs(STAGE, exist_ok=True)
        joins += _staging(staged)
    become = f"setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs"
    launch = _script(joins, become)
    if hidden:
        launch = ["unshare", "--mount", "--propagation", "private", *launch]
    return launch, [(kind, staged.get((kind, a, b), a), b) for kind, a, b in binds]


def _staging(staged: dict[tuple[str, str, str], str]) -> list[str]:
    lines = [_or_say(f"mount -t tmpfs -o mode=755 stage {STAGE}", STAGE)]
    for (_, source, _), place in staged.items():
        make = "mkdir" if os.path.isdir(source) else "touch"
        lines += [f"{make} {place}"]
        lines += [_or_say(f"mount --rbind {shlex.quote(source)} {place}", source)]
    return lines


def _or_say(command: str, what: str) -> str:
    """In bubblewrap's name, as everything that goes wrong before the program's start."""
    message = shlex.quote(f"bwrap: '{what}' can't be bound")
    return f"{command} 2> /dev/null || {{ echo {message} >&2; exit 1; }}"


def _script(lines: Sequence[str], become: str) -> list[str]:
    return ["sh", "-ec", "\n".join([*lines, f'exec {become} "$@"']), "sh"]


def _open_to_all(path: str) -> bool:
    """Whether a user without rights of its own gets there."""
    place = Path(os.path.realpath(path))
    try:
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in place.parents)
    except OSError:
        return False
