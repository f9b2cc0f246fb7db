"""One SGLang server process: start, wait until it answers, stop. Owned by an engine actor."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rlframe.errors import RunError
from rollout.engine import launcher
from rollout.engine.arguments import server_arguments
from rollout.engine.control import Control
from rollout.engine.ports import free_port

READY_POLL_S = 0.1
STOP_TIMEOUT_S = 3.0
KEEP_ALIVE_S = 3600
"""SGLang closes a connection that was idle for 5 s, just when a step's first requests come: the router
takes what it loses that way for an engine that fails."""
LOG_TAIL_LINES = 15
PORT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What one engine serves, and how."""

    index: int
    model_directory: str
    random_weights: bool
    dtype: str
    device: str
    arguments: dict[str, Any]
    """The user's `rollout.engine_args`."""
    seed: int
    num_threads: int
    log_directory: str
    start_timeout_s: float
    control_timeout_s: float


@dataclass(slots=True)
class Keys:
    """Made for the run; never on a command line, never in a log."""

    api: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    admin: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


class SglangServer:
    """A server process and its control connection."""

    def __init__(self, spec: EngineSpec, keys: Keys, *, host: str) -> None:
        self._spec, self._keys, self._host = spec, keys, host
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.control: Control | None = None
        self.log = Path(spec.log_directory) / f"engine-{spec.index}.log"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else -1

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processor_s(self) -> float:
        """Used so far by what the server has started: schedulers and detokenizer, not HTTP."""
        used = 0.0
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                times = child.cpu_times()
                used += times.user + times.system
        return used

    def start(self) -> None:
        """Returns when one token has come back. RunError with the end of the log where it can't start."""
        for attempt in range(PORT_ATTEMPTS):
            self._launch(free_port(self._host))
            if self._wait_ready():
                return
            port_lost = "address already in use" in self._log_tail().lower()
            self.stop()
            if not port_lost or attempt + 1 == PORT_ATTEMPTS:
                break
        raise RunError(
            f"engine {self._spec.index} did not start (rollout.engine_args, {self.log.name}); its log "
            f"ends with:\n{self._log_tail()}"
        )

    def stop(self) -> None:
        """Ends the server and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _launch(self, port: int) -> None:
        spec = self._spec
        fields = server_arguments(
            user=spec.arguments,
            device=spec.device,
            model_directory=spec.model_directory,
            random_weights=spec.random_weights,
            dtype=spec.dtype,
            seed=spec.seed + spec.index,
            host=self._host,
            port=port,
        )
        arguments_file = self.log.with_suffix(".json")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments_file.write_text(json.dumps(fields, indent=2))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(spec.num_threads),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "SGLANG_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S),
            launcher.API_KEY_VARIABLE: self._keys.api,
            launcher.ADMIN_KEY_VARIABLE: self._keys.admin,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rollout.engine.launcher", str(arguments_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.url = f"http://{self._host}:{port}"
        self.control = Control(
            self.url,
            api_key=self._keys.api,
            admin_key=self._keys.admin,
            timeout_s=spec.control_timeout_s,
        )

    def _wait_ready(self) -> bool:
        deadline = time.monotonic() + self._spec.start_timeout_s
        assert self.control is not None
        while self.alive and time.monotonic() < deadline:
            if self.control.generates(timeout_s=self._spec.control_timeout_s):
                return True
            time.sleep(READY_POLL_S)
        return False

    def _log_tail(self) -> str:
        if not self.log.exists():
            return "(no log)"
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])
