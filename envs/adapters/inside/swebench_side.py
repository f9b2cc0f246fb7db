"""Runs in the Python that has `swebench`: reads logs as the package does."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from swebench.harness.grading import get_eval_report
from swebench.types import TestSpec


def report(instance: dict[str, Any], log: str) -> Any:
    spec = TestSpec(
        instance_id=instance["id"],
        image="",
        eval_script_list=[],
        repo=instance["repo"],
        version=instance["version"],
        FAIL_TO_PASS=instance["fail_to_pass"],
        PASS_TO_PASS=instance["pass_to_pass"],
        log_parser=instance["log_parser"],
        eval_type=instance["eval_type"],
    )
    prediction = {"instance_id": spec.instance_id, "model_name_or_path": "", "model_patch": "given"}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(log)
        file.flush()
        return get_eval_report(spec, prediction, file.name, True)[spec.instance_id]


def main() -> None:
    """Lines of JSON: {"id", "params": {"instance", "log"}} -> {"id", "result"} or {"id", "error"}."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the package prints is none of our messages
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {"id": asked["id"]}
        try:
            answer["result"] = report(**asked["params"])
        except Exception as error:  # noqa: BLE001 - a parser's
            answer["error"] = f"{type(error).__name__}: {error}"
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
