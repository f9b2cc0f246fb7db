"""The real SGLang server, on a GPU as it is, on a CPU with what it needs to start.

    python -m rollout.engine.launcher ARGUMENTS.json     (fields of SGLang's ServerArgs, by name)

The API keys come through the environment, so that no process list shows them. The server dies with the
process that started it, whatever ends that one: the kernel sends the signal.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from rollout.engine.arguments import GLM_ARCHITECTURE, architectures

API_KEY_VARIABLE = "RLFRAME_ENGINE_API_KEY"
ADMIN_KEY_VARIABLE = "RLFRAME_ENGINE_ADMIN_KEY"
PR_SET_PDEATHSIG = 1
GLM_PACKAGE = "rollout.engine.glm_cpu"


def die_with_parent() -> None:
    """SIGKILL when the parent ends (Linux). SGLang's own children do the same by themselves."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def prepare_cpu(model_directory: str) -> None:
    """Before the first import of sglang."""
    from rollout.engine import cpu_imports

    cpu_imports.install()
    known = architectures(model_directory)
    os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(_other_models(known)))
    if GLM_ARCHITECTURE in known:
        os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", GLM_PACKAGE)
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")  # torch's own rope, norms and activations
    _start_children_by_fork()


def _other_models(architectures: list[str]) -> list[str]:
    """SGLang's model files that do not define one of these architectures.

    Its registry imports all of them, by far the longest part of a start. This is its own switch.
    """
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations
    models = Path(next(iter(package.submodule_search_locations))) / "srt" / "models"
    wanted = [f"class {name}(" for name in architectures]
    if not wanted:
        return []
    return [p.stem for p in models.glob("*.py") if not any(w in p.read_text() for w in wanted)]


def _start_children_by_fork() -> None:
    """SGLang asks for `spawn`, which imports everything again in each child: 15 to 40 s and 0.6 GiB more.

    `spawn` protects a CUDA context; a CPU server has none.
    """
    chosen = multiprocessing.set_start_method

    def set_start_method(method: str | None, force: bool = False) -> None:
        chosen("fork", force=True)

    multiprocessing.set_start_method = set_start_method


def main(arguments_file: str) -> None:
    die_with_parent()
    fields = json.loads(Path(arguments_file).read_text())
    if fields.get("device") == "cpu":
        prepare_cpu(fields["model_path"])
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import kill_process_tree

    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", force=True)
    load_plugins()
    if fields.get("device") == "cpu":
        from rollout.engine import cpu_attention

        cpu_attention.register()
    keys = {
        "api_key": os.environ.pop(API_KEY_VARIABLE, None),
        "admin_api_key": os.environ.pop(ADMIN_KEY_VARIABLE, None),
    }
    arguments = ServerArgs(**fields, **keys)
    try:
        run_server(arguments)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main(sys.argv[1])
