"""The real `swebench` package grades: a whole attempt, and the same logs as our own reading of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from peers import needs_peer
from sandboxes import needs_bubblewrap
from swe_bench_rows import ID, MENDED, rows, source

from envs.adapters.peer import peer_python
from envs.adapters.swe_bench_grading import Swebench, read_log
from envs.adapters.swe_bench_instance import instance_of
from rlframe.errors import TaskFault

pytestmark = needs_peer("swebench")

TOTAL, COUNT, NONE = (
    "tests/test_sums.py::test_total",
    "tests/test_sums.py::test_count",
    "tests/test_more.py::test_none",
)
START, END = ">>>>> Start Test Output\n", ">>>>> End Test Output\n"


def log_of(*lines: str, code: int = 0) -> str:
    return f"+ git\n{START}" + "\n".join(lines) + f"\n{END}>>>>> Test Exit Code: {code}\n"


LOGS = {
    "resolved": log_of(f"PASSED {TOTAL}", f"PASSED {COUNT}", f"PASSED {NONE}"),
    "kept by skipping": log_of(f"PASSED {TOTAL}", f"SKIPPED {COUNT}", f"XFAIL {NONE}"),
    "skipped": log_of(f"SKIPPED {TOTAL}", f"PASSED {COUNT}", f"PASSED {NONE}"),
    "failed": log_of(
        f"FAILED {TOTAL} - assert 1 == 2", f"PASSED {COUNT}", f"PASSED {NONE}", code=1
    ),
    "broken": log_of(f"PASSED {TOTAL}", f"ERROR {COUNT}", f"PASSED {NONE}", code=1),
    "absent": log_of(f"PASSED {TOTAL}", f"PASSED {NONE}"),
    "printed, and failed": log_of(f"PASSED {TOTAL}", f"PASSED {COUNT}", f"PASSED {NONE}", code=1),
    "nothing": log_of(),
    "no markers": f"PASSED {TOTAL}\nPASSED {COUNT}\nPASSED {NONE}\n",
    "not applied": ">>>>> Patch Apply Failed\n" + log_of(f"PASSED {TOTAL}"),
    "outside": f"{START}{END}PASSED {TOTAL}\nPASSED {COUNT}\nPASSED {NONE}\n",
    "skip counts": log_of(
        f"PASSED {TOTAL}", f"PASSED {COUNT}", f"PASSED {NONE}", "SKIPPED [1] a.py:3: why"
    ),
}


@pytest.fixture(scope="module")
def package() -> Iterator[Swebench]:
    swebench = Swebench(peer_python("swebench"))
    yield swebench
    swebench.program.end()


@pytest.mark.parametrize("name", LOGS)
async def test_logs_are_read_as_the_package_reads_them(
    name: str, package: Swebench, tmp_path: Path
) -> None:
    instance = instance_of({**rows(tmp_path)[0], "log_parser": "parse_log_pytest"})
    theirs = await package.read_log(LOGS[name], instance)
    ours = read_log(LOGS[name], instance)
    if not ours.read:
        theirs = replace(theirs, fail_to_pass=(0, 0), pass_to_pass=(0, 0))
    assert ours == theirs
    assert ours.resolved == (name in ("resolved", "kept by skipping", "outside", "skip counts"))


async def test_a_parser_that_the_package_lacks(package: Swebench, tmp_path: Path) -> None:
    instance = instance_of({**rows(tmp_path)[0], "log_parser": "parse_log_none"})
    with pytest.raises(TaskFault, match=r"someone__sums-1.*swebench: KeyError: 'parse_log_none'"):
        await package.read_log(LOGS["resolved"], instance)


@needs_bubblewrap
async def test_an_attempt_that_the_package_grades(tmp_path: Path) -> None:
    """With the row's own script, in the package's form."""
    row = rows(tmp_path)[0]
    script = (
        "#!/bin/bash\nset -uxo pipefail\ncd /testbed\n"
        f"git checkout {row['base_commit']} tests/test_sums.py\n"
        f"git apply -v - <<'EOF_1'\n{row['test_patch']}EOF_1\n"
        ": '>>>>> Start Test Output'\npython3 -m pytest -rA tests\n: '>>>>> End Test Output'\n"
        f"git checkout {row['base_commit']} tests/test_sums.py\n"
    )
    row |= {"eval_script": script, "log_parser": "parse_log_pytest_v2"}
    made = source(tmp_path, [row, row], python=peer_python("swebench"))
    for content, resolved in ((MENDED, True), (f"{MENDED}\nraise ValueError\n", False)):
        env = made.make(made.train_task(0))
        assert made.train_task(0).id.endswith(ID)
        await env.start()
        write = {"path": "sums.py", "content": content}
        await env.act(
            {"role": "assistant", "tool_calls": [{"id": "1", "name": "write", "arguments": write}]}
        )
        end = {"id": "2", "name": "submit", "arguments": {}}
        result = await env.act({"role": "assistant", "tool_calls": [end]})
        assert result.info["resolved"] is resolved, result.info["log_tail"]
        assert result.reward == float(resolved)
        await env.close()
    assert made.grader is not None
    made.grader.program.end()
