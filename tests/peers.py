"""Where the packages are that adapters adapt (`scripts/install_peers.py`), for tests that use the real ones."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from envs.adapters.peer import own_environment, peer_python

START_TIMEOUT_S = 120.0


def needs_peer(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is not installed: python scripts/install_peers.py {name}"
    return pytest.mark.skipif(not peer_python(name), reason=reason)


@contextlib.contextmanager
def served(name: str, script: Path, kinds: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """URLs by kind of a script of that package's Python, which gets `KIND:PORT` for each."""
    with contextlib.ExitStack() as stack:
        free = {kind: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for kind in kinds}
        ports = {kind: listener.getsockname()[1] for kind, listener in free.items()}
    command = [peer_python(name), str(script), *(f"{kind}:{port}" for kind, port in ports.items())]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=own_environment())
    try:
        for port in ports.values():
            _wait_for(port, process)
        yield {kind: f"http://127.0.0.1:{port}" for kind, port in ports.items()}
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise AssertionError("the server does not come up")
