"""A start that takes too long is made again. The busy machine is played: Ray's message, and a process it left."""

import subprocess
import sys

import psutil
import pytest

from rlframe.cluster.patience import start_patiently
from rlframe.errors import RunError

MESSAGE = "The current node timed out during startup. This could happen because ..."


class Busy:
    def __init__(self, slow_starts):
        self.slow_starts, self.left = slow_starts, []

    def start(self):
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.left.append(process)
        if len(self.left) <= self.slow_starts:
            raise Exception(MESSAGE)  # Ray raises no class of its own


def test_a_slow_start_is_made_again_and_leaves_nothing():
    machine = Busy(slow_starts=2)
    start_patiently(machine.start)
    *slow, last = machine.left
    assert not any(psutil.pid_exists(process.pid) for process in slow)
    assert last.poll() is None
    last.kill()
    last.wait()


def test_it_ends_with_what_to_do():
    machine = Busy(slow_starts=9)
    with pytest.raises(RunError, match=r"3 times: this machine is too busy .*cluster\.address"):
        start_patiently(machine.start, starts=3)
    assert not any(psutil.pid_exists(process.pid) for process in machine.left)
    assert len(machine.left) == 3


def test_other_failures_are_not_tried_again():
    calls = []

    def fails():
        calls.append(1)
        raise ValueError("no such address")

    with pytest.raises(ValueError, match="no such address"):
        start_patiently(fails)
    assert len(calls) == 1
