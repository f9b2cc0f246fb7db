"""Set-up on a bare machine: a virtual environment with one pinned, locked dependency set.

    python3 scripts/setup.py            # `make setup`; again is instant

Which set: `cuda` where the NVIDIA driver lists a GPU, else `cpu`; RLFRAME_PLATFORM=cpu|cuda decides
otherwise. On a CPU no CUDA package is installed, which the last step checks. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "rlframe-setup.json"
REQUIREMENTS = ROOT / "requirements"
SUPPORTED = ((3, 11), (3, 12))
TORCH = "torch==2.13.0"
SGLANG = "sglang==0.5.20"
DEEPSPEED = "deepspeed==0.19.8"
UV = "uv==0.13.9"
GIB_NEEDED = {"cpu": 6, "cuda": 25}


def main() -> int:
    chosen = choose_platform()
    wanted = {"platform": chosen, "packages": packages_of(chosen), "project": project()}
    installed = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    if installed == wanted:
        return 0
    if installed.get("packages") == wanted["packages"]:
        print("rlframe set-up: pyproject.toml has changed, rlframe is installed again", flush=True)
        install_project()
        STAMP.write_text(json.dumps(wanted))
        return 0
    python = find_python()
    free = shutil.disk_usage(ROOT).free / 1024**3
    if free < GIB_NEEDED[chosen]:
        return fail(f"{free:.0f} GiB of disk are free, the {chosen} set needs {GIB_NEEDED[chosen]}")
    print(f"rlframe set-up: the {chosen} set into .venv, a few minutes once", flush=True)
    steps: dict[str, list[tuple[str, Callable[[], None]]]] = {
        "cpu": [
            ("virtual environment", lambda: create_environment(python)),
            ("torch, CPU build", install_cpu_torch),
            ("locked packages", lambda: install_locked("cpu.lock")),
            # Its dependencies are CUDA packages; what it imports on a CPU is in the lock.
            ("sglang", lambda: pip("--no-deps", SGLANG)),
            ("deepspeed, built here without CUDA ops", install_deepspeed),
            ("rlframe itself", install_project),
            ("check: no CUDA package", check_no_cuda),
        ],
        "cuda": [
            ("virtual environment", lambda: create_environment(python)),
            ("locked packages", lambda: install_locked("cuda.lock")),
            ("deepspeed", install_deepspeed),
            ("rlframe itself", install_project),
        ],
    }
    for number, (name, step) in enumerate(steps[chosen], start=1):
        started = time.monotonic()
        print(f"  {number}/{len(steps[chosen])} {name} ...", end=" ", flush=True)
        try:
            step()
        except subprocess.CalledProcessError as error:
            print("failed")
            return fail(f"`{' '.join(map(str, error.cmd))}` ended with {error.returncode}")
        print(f"{time.monotonic() - started:.0f} s", flush=True)
    STAMP.write_text(json.dumps(wanted))
    return 0


def choose_platform() -> str:
    given = os.environ.get("RLFRAME_PLATFORM", "")
    if given not in ("", "cpu", "cuda"):
        sys.exit(fail(f"RLFRAME_PLATFORM={given}: allowed are cpu and cuda"))
    return given or ("cuda" if has_gpu() else "cpu")


def has_gpu() -> bool:
    """The driver lists a GPU; its tools alone (as in some images) don't count."""
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return "GPU 0" in listed.stdout


def packages_of(chosen: str) -> str:
    """Changes with whatever decides which packages are installed."""
    return digest_of(REQUIREMENTS / f"{chosen}.lock", Path(__file__))


def project() -> str:
    """Changes with what an editable installation has copied: commands and plugins."""
    return digest_of(ROOT / "pyproject.toml")


def digest_of(*files: Path) -> str:
    digest = hashlib.sha256(str(ROOT).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_python() -> str:
    """This interpreter if it will do, else a fitting one on the path."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in SUPPORTED:
        found = shutil.which(f"python{major}.{minor}")
        if found:
            return found
    sys.exit(
        fail(
            f"Python 3.11 or 3.12 is needed, this is {platform.python_version()}: install it "
            "(Debian, Ubuntu: `apt-get install python3.11 python3.11-venv`) and run again"
        )
    )


def create_environment(python: str) -> None:
    """Anew: an environment of another set or of a set-up that was cut off is not trusted."""
    if VENV.exists():
        shutil.rmtree(VENV)
    run([python, "-m", "venv", str(VENV)])


def install_cpu_torch() -> None:
    """pip where what it would take is a CPU build; otherwise uv, which knows PyTorch's own CPU index."""
    if is_cpu_build():
        pip(TORCH)
        return
    pip(UV)
    run([*UV_PIP, "--torch-backend=cpu", TORCH])


def is_cpu_build() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return True  # elsewhere the plain build has no CUDA
    report = subprocess.run(
        [*PIP, "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", TORCH],
        capture_output=True,
        text=True,
    )
    if report.returncode:
        return False
    found = json.loads(report.stdout)["install"][0]["metadata"]["version"]
    return str(found).endswith("+cpu")


def install_locked(name: str) -> None:
    """By uv, in a good half of pip's time; by pip where uv does not get at the packages: it does not read
    pip's own settings of indexes and certificates."""
    wanted = ["--no-deps", "-r", str(REQUIREMENTS / name)]
    for command in ([*PIP, UV], [*UV_PIP, *wanted]):
        if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode:
            print("by pip ...", end=" ", flush=True)
            pip(*wanted)
            return


def install_deepspeed() -> None:
    environment = {"DS_BUILD_OPS": "0"}
    if choose_platform() == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    pip("--no-deps", "--no-build-isolation", DEEPSPEED, environment=environment)


def install_project() -> None:
    pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))


def check_no_cuda() -> None:
    listed = subprocess.run([*PIP_LIST], capture_output=True, text=True, check=True).stdout
    stray = [line for line in listed.splitlines() if line.startswith("nvidia-")]
    if stray:
        sys.exit(fail(f"CUDA packages came in on a CPU machine: {', '.join(stray)}"))


PIP = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
# Bytecode now, by all cores: where PYTHONDONTWRITEBYTECODE is set, every process would make its own, a minute each.
UV_PIP = [
    *(str(PYTHON), "-m", "uv", "pip", "install", "-qq", "--compile-bytecode"),
    *("--python", str(PYTHON)),
]
PIP_LIST = [str(PYTHON), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]


def pip(*arguments: str, environment: dict[str, str] | None = None) -> None:
    run([*PIP, *arguments], environment=environment)


def run(command: list[str], *, environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )


def fail(message: str) -> int:
    print(f"rlframe set-up: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
