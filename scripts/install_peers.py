"""Installs the packages that adapters adapt, each in an environment of its own: `.peers/NAME`.

    .venv/bin/python scripts/install_peers.py                    # all of them
    .venv/bin/python scripts/install_peers.py verifiers          # one

Their pins conflict with ours and with each other's. What is installed stands in requirements/peers/NAME.lock,
with every dependency; nothing else is resolved. Again is instant. What can't be installed is said, with the
reason, and the others go on; the exit code is 1 then.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from envs.adapters.peer import DIRECTORY, PEERS
from rlframe.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[1]
STAMP = "rlframe-installed.lock"


def main(names: list[str]) -> int:
    failed = 0
    for name in names or PEERS:
        if name not in PEERS:
            raise UserError(f"{name}: there is no such peer.{nearest(name, PEERS)}")
        print(f"{name}: ", end="", flush=True)
        try:
            print(install(name), flush=True)
        except (subprocess.CalledProcessError, OSError) as error:
            failed += 1
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-3:]
            print(f"not installed: {' '.join(said)}", flush=True)
    return 1 if failed else 0


def install(name: str) -> str:
    lock = ROOT / "requirements" / "peers" / f"{name}.lock"
    target = ROOT / DIRECTORY / name
    stamp = target / STAMP
    about = lock.read_text().partition("\n")[0].lstrip("# ")
    if stamp.exists() and stamp.read_text() == lock.read_text():
        return f"{about} There already."
    shutil.rmtree(target, ignore_errors=True)
    run([sys.executable, "-m", "venv", "--without-pip", str(target)])
    python = str(target / "bin" / "python")
    # Of our environment (scripts/setup.py): seconds where pip takes minutes.
    uv = [sys.executable, "-m", "uv", "pip", "install", "-q"]
    run([*uv, "--no-deps", "-p", python, "-r", str(lock)])
    stamp.write_text(lock.read_text())
    return about


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error)
        sys.exit(2)
