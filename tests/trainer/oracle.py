"""transformers 5.23.0 as the reference of GLM-5's numbers, in processes of its own.

It is installed once, without its dependencies, into a folder beside the environment's packages
(`requirements/oracle.txt` says why it can't be among them), and only processes started here see it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

WANTED = Path(__file__).resolve().parents[2] / "requirements" / "oracle.txt"
FOLDER = Path(sys.prefix) / "oracle"


def ask_glm(**question: Any) -> dict[str, Any]:
    """What `oracle_glm.py` answers; its docstring says what may be asked."""
    with tempfile.TemporaryDirectory() as directory:
        asked, answered = Path(directory) / "asked.pt", Path(directory) / "answered.pt"
        torch.save(question, asked)
        script = Path(__file__).with_name("oracle_glm.py")
        done = subprocess.run(
            [sys.executable, str(script), str(asked), str(answered)],
            env=os.environ | {"PYTHONPATH": str(installed()), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return torch.load(answered)  # type: ignore[no-any-return]


def installed() -> Path:
    """The folder, made on first use; by one process, however many ask at once."""
    with (Path(sys.prefix) / ".oracle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = FOLDER / WANTED.name
        if not (stamp.exists() and stamp.read_text() == WANTED.read_text()):
            _install()
    return FOLDER


def _install() -> None:
    staging = Path(tempfile.mkdtemp(prefix=".oracle.", dir=sys.prefix))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(staging), "-r", str(WANTED)], check=True)
    shutil.copy(WANTED, staging)
    shutil.rmtree(FOLDER, ignore_errors=True)
    staging.rename(FOLDER)
