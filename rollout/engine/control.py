"""The control calls of one engine, with the admin key. Plain and blocking: one caller, the actor."""

from __future__ import annotations

from typing import Any

import requests

from rlframe.errors import InfraFault

WORK = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
"""Of /v1/loads, which reads what the scheduler writes while it works, without waiting for it. Not its
time: a scheduler writes that, too, while it can't place any of its requests."""


class EngineRefused(InfraFault):
    """The engine answered, and the answer is no."""


class Control:
    """HTTP control of one SGLang server."""

    def __init__(self, url: str, *, api_key: str, admin_key: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment must never see the keys
        self._user = {"Authorization": f"Bearer {api_key}"}
        self._admin = {"Authorization": f"Bearer {admin_key}"}

    def generates(self, *, timeout_s: float) -> bool:
        """One token comes back in time: the whole path works, not only the HTTP server."""
        body: dict[str, Any] = {
            "input_ids": [0],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        }
        try:
            answer = self._session.post(
                f"{self._url}/generate", json=body, headers=self._user, timeout=timeout_s
            )
        except requests.RequestException:
            return False
        return answer.ok

    def work(self, *, timeout_s: float) -> tuple[int, ...]:
        """The schedulers' counters, which move as long as they get ahead; empty where none answers."""
        try:
            answer = self._session.get(
                f"{self._url}/v1/loads?include=core", headers=self._user, timeout=timeout_s
            )
        except requests.RequestException:
            return ()
        if not answer.ok:
            return ()
        return tuple(load[name] for load in answer.json()["loads"] for name in WORK)

    def weight_version(self) -> str:
        """The version that the next token will carry."""
        return str(self._call("GET", "/get_model_info", self._user)["weight_version"])

    def pause(self, mode: str) -> None:
        """`abort`, `retract` or `in_place`, see SGLang's PauseGenerationReqInput."""
        self._call("POST", "/pause_generation", self._admin, {"mode": mode})

    def resume(self) -> None:
        self._call("POST", "/continue_generation", self._admin, {})

    def load_from_disk(self, directory: str, *, version: int) -> None:
        """Raises EngineRefused where SGLang says no; it keeps its old weights then."""
        answer = self._call(
            "POST",
            "/update_weights_from_disk",
            self._admin,
            {
                "model_path": directory,
                "load_format": "safetensors",
                "weight_version": str(version),
            },
        )
        if not answer.get("success"):
            raise EngineRefused(f"weights were not loaded: {answer.get('message')}")

    def load_from_handles(self, handles: str, *, tensor_parallel: int, version: int) -> None:
        """As `load_from_disk`, from memory of this host."""
        answer = self._call(
            "POST",
            "/update_weights_from_tensor",
            self._admin,
            {
                "serialized_named_tensors": [handles] * tensor_parallel,
                "weight_version": str(version),
            },
        )
        if not answer.get("success"):
            raise EngineRefused(f"weights were not loaded: {answer.get('message')}")

    def _call(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            answer = self._session.request(
                method, self._url + path, json=body, headers=headers, timeout=self._timeout_s
            )
        except requests.RequestException as error:
            raise InfraFault(f"{method} {path} of {self._url}: {error}") from error
        if not answer.ok:
            raise EngineRefused(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        try:
            parsed = answer.json()
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}
