"""sglang-router in front of the engines: one stable address, cache-aware routing, retries on a survivor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from rlframe.errors import RunError, UserError
from rollout.engine.launcher import API_KEY_VARIABLE
from rollout.engine.ports import HeldPort
from rollout.engine.server import Keys

START_TIMEOUT_S = 60.0
POLL_S = 0.05
CALL_TIMEOUT_S = 10.0
CIRCUIT_OPEN_S = 2
"""After ten lost requests the router keeps away from an engine; its default, a minute, holds up a whole run."""
REQUEST_TIMEOUT_S = 86400
"""The client's own limit is the one that counts."""


class Router:
    """The router process. It keeps its port over a restart, so that clients never notice."""

    def __init__(
        self, *, host: str, keys: Keys, arguments: Mapping[str, Any], log_directory: str
    ) -> None:
        self._keys = keys
        self._log = Path(log_directory) / "router.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._workers: dict[str, str] = {}  # url -> id at the router
        self._session = requests.Session()
        self._session.trust_env = False
        self._port, self._metrics_port = HeldPort(host), HeldPort("127.0.0.1")
        self._fields = {
            "policy": "cache_aware",
            "log_level": "warn",
            "request_timeout_secs": REQUEST_TIMEOUT_S,
            "cb_timeout_duration_secs": CIRCUIT_OPEN_S,
            "prometheus_host": "127.0.0.1",
            "prometheus_port": self._metrics_port.number,
            **arguments,
            "host": host,
            "port": self._port.number,
        }
        self.url = f"http://{host}:{self._fields['port']}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else -1

    def start(self) -> None:
        """Returns when it answers. RunError with its log where it does not, UserError where a port that
        was asked for is in use."""
        _check_free("prometheus_port", self._fields["prometheus_port"])
        self._log.parent.mkdir(parents=True, exist_ok=True)
        arguments_file = self._log.with_suffix(".json")
        arguments_file.write_text(json.dumps(self._fields, indent=2))
        environment = {**os.environ, API_KEY_VARIABLE: self._keys.api}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rollout.engine.router_launcher", str(arguments_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._wait(lambda: self._listed() is not None, "answer")

    def add(self, engine_url: str) -> None:
        """Returns when the router routes to it (its own /health says 200 before that)."""
        answer = self._call("POST", "/workers", {"url": engine_url, "api_key": self._keys.api})
        answer.raise_for_status()
        self._workers[engine_url] = answer.json()["worker_id"]
        self._wait(lambda: engine_url in (self._listed() or {}), f"take {engine_url}")

    def remove(self, engine_url: str) -> None:
        """Dead engines stay in the router's list until they are taken out."""
        worker = self._workers.pop(engine_url, None)
        if worker is not None and self.alive:
            self._call("DELETE", f"/workers/{worker}")

    def restart(self, engine_urls: list[str]) -> None:
        """On the same port, with these engines."""
        self.stop()
        self._workers.clear()
        self.start()
        for url in engine_urls:
            self.add(url)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _listed(self) -> dict[str, bool] | None:
        try:
            answer = self._call("GET", "/workers")
        except requests.RequestException:
            return None
        if not answer.ok:
            return None
        return {w["url"]: w["is_healthy"] for w in answer.json()["workers"]}

    def _wait(self, holds: Any, what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.alive and time.monotonic() < deadline:
            if holds():
                return
            time.sleep(POLL_S)
        tail = self._log.read_text(errors="replace")[-2000:]
        raise RunError(
            f"sglang-router did not {what} (rollout.router_args); its log ends with:\n{tail}"
        )

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> requests.Response:
        return self._session.request(
            method,
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self._keys.api}"},
            timeout=CALL_TIMEOUT_S,
        )


def _check_free(name: str, port: int) -> None:
    """The router itself panics."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"rollout.router_args.{name}={port} can't be used ({error.strerror}): give another "
                "one, or none, and a free one is taken"
            ) from None
