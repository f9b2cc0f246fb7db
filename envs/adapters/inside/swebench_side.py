"""Runs in the Python that has `swebench`: {"instance", "log"} from stdin, its report of it to stdout."""

from __future__ import annotations

import json
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


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(report(given["instance"], given["log"])))
