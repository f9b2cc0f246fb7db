"""wandb, really: offline, without a key, resumed, and when the driver is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from rlframe.errors import UserError
from rlframe.wandb_sink import open_wandb

DRIVER = """
import sys, signal
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rlframe.metrics import Metrics
from rlframe.wandb_sink import open_wandb
run = Path(sys.argv[1])
sink = open_wandb("auto", project="p", entity="", name="n", directory=run, config={"steps": 2})
metrics = Metrics(run / "metrics.jsonl", sinks=[sink])
metrics.log(1, {"reward/mean": 0.5})
metrics.log(2, {"reward/mean": 0.625})
from matplotlib.figure import Figure
Figure().savefig(run / "picture.png")
metrics.show("shown", [{"domain": "gcd", "student": 0.5}], run / "picture.png")
if sys.argv[3] == "wait":
    print("logged", flush=True)
    signal.pause()
metrics.close()
print("closed", flush=True)
"""


def start(run, then: str) -> subprocess.Popen:
    keyless = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run), os.getcwd(), then],
        env=keyless | {"HOME": str(run), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_auto_without_a_key_logs_offline_twice_under_one_id(tmp_path):
    for _ in range(2):
        out, errors = start(tmp_path, "close").communicate(timeout=120)
        assert out == "closed\n"
        assert errors == "", "wandb printed on the user's terminal"
    run_id = (tmp_path / "wandb_id").read_text()
    written = list(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert written
    assert b"reward/mean" in b"".join(p.read_bytes() for p in written)
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/shown/picture*.png"))
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/shown/table*.json"))


def test_no_process_is_left_when_the_driver_is_killed(tmp_path):
    driver = start(tmp_path, "wait")
    assert driver.stdout.readline() == "logged\n"
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_online_without_a_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"project": "p", "entity": "", "name": "n", "directory": tmp_path, "config": {}}
    with pytest.raises(UserError, match=r"logging\.wandb=online"):
        open_wandb("online", **options)
    assert open_wandb("off", **options) is None


@pytest.mark.slow
def test_a_server_that_does_not_answer_means_offline(tmp_path, monkeypatch):
    """A key, and a server that refuses connections: `auto` goes on offline."""
    code = DRIVER.replace('"closed"', '"closed", type(sink._run).__name__, sink._run.offline')
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("WANDB")},
        "HOME": str(tmp_path),
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), os.getcwd(), "close"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "closed Run True\n", done.stderr
    assert "logging offline" in done.stderr
