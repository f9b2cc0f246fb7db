"""wandb, beside the JSONL file: the same values, never a prompt, never in the way of the run.

A run that resumes goes on under the same wandb id, which is kept in the run directory. Steps are a
metric (`step`), not wandb's own counter, which refuses to go back as a resumed run does.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlframe.durable_files import write_atomic
from rlframe.errors import UserError

INIT_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


class WandbSink:
    """Use `open_wandb`."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, event: str, step: int, values: Mapping[str, float]) -> None:
        try:
            self._run.log({"step": step, **values})
        except Exception as error:  # noqa: BLE001 - outside code; metrics.jsonl has it all
            logger.warning("wandb did not take step %d: %s", step, error)

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], picture: Path) -> None:
        import wandb

        try:
            columns = list(rows[0])
            table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
            self._run.log({f"{name}/table": table, f"{name}/picture": wandb.Image(str(picture))})
        except Exception as error:  # noqa: BLE001 - outside code; the run directory has both
            logger.warning("wandb did not take %s: %s", name, error)

    def close(self) -> None:
        """Waits for the upload for CLOSE_TIMEOUT_S; what is missing then stays on disk (`wandb sync`)."""
        finisher = threading.Thread(target=self._finish, name="wandb-finish", daemon=True)
        finisher.start()
        finisher.join(CLOSE_TIMEOUT_S)

    def _finish(self) -> None:
        try:
            self._run.finish()
        except Exception as error:  # noqa: BLE001 - outside code, at the very end of a run
            logger.warning("wandb did not finish: %s", error)


def open_wandb(
    mode: str,
    *,
    project: str,
    entity: str,
    name: str,
    directory: Path,
    config: Mapping[str, Any],
) -> WandbSink | None:
    """None for `off`. `auto` is online with an API key (WANDB_API_KEY or a netrc entry), offline without.

    UserError for `online` without a key, or if wandb can't be imported and was asked for by name.
    `directory` (the run directory) gets `wandb/` and `wandb_id`.
    """
    if mode == "off":
        return None
    try:
        import wandb
    except ImportError as error:
        if mode == "auto":
            return None
        raise UserError(
            f"logging.wandb={mode}, but wandb cannot be imported ({error}): install it, or use "
            "logging.wandb=off"
        ) from error
    has_key = bool(os.environ.get("WANDB_API_KEY") or _key_in_netrc())
    if mode == "online" and not has_key:
        raise UserError(
            "logging.wandb=online, but there is no API key: set WANDB_API_KEY, run `wandb login`, or "
            "use logging.wandb=offline"
        )
    online = mode == "online" or (mode == "auto" and has_key)
    options: dict[str, Any] = {
        "project": project,
        "entity": entity or None,
        "name": name,
        "id": _run_id(directory),
        "dir": str(directory),
        "config": dict(config),
        "resume": "allow" if online else None,
    }
    if online:
        try:
            return WandbSink(_init(wandb, "online", options))
        except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
            if mode == "online":
                raise UserError(
                    f"logging.wandb=online, but wandb does not answer ({error}): check the key and the "
                    "network, or use logging.wandb=offline"
                ) from error
            logger.warning("wandb does not answer (%s): logging offline", error)
            wandb.teardown()  # or its service would call the run's id "in use" (0.31)
    return WandbSink(_init(wandb, "offline", {**options, "resume": None}))


def _init(wandb: Any, mode: str, options: Mapping[str, Any]) -> Any:
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=CLOSE_TIMEOUT_S,
        x_disable_stats=True,  # samples the machine, which costs what smoke does not have
        disable_git=True,
    )
    return wandb.init(mode=mode, settings=settings, **options)


def _key_in_netrc() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError, OSError):
        return False


def _run_id(directory: Path) -> str:
    path = directory / "wandb_id"
    if not path.exists():
        write_atomic(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()
