"""A lock that a killed compilation left is removed; one that is worked under is not."""

import os
import subprocess
import sys
import time

import pytest

from trainer.deepspeed.abandoned_build import MOST_S, remove_abandoned_lock


@pytest.fixture
def build(tmp_path):
    (tmp_path / "lock").touch()
    return tmp_path


def make_old(build):
    then = time.time() - 2 * MOST_S
    os.utime(build / "lock", (then, then))


def test_an_old_lock_that_nobody_works_under_is_removed(build):
    make_old(build)
    assert remove_abandoned_lock(build)
    assert not (build / "lock").exists()


def test_a_young_one_stays(build):
    assert not remove_abandoned_lock(build)
    assert (build / "lock").exists()


def test_one_that_is_worked_under_stays(build):
    make_old(build)
    compiler = subprocess.Popen(
        [sys.executable, "-c", "input()"], cwd=build, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert not remove_abandoned_lock(build)
        assert (build / "lock").exists()
    finally:
        compiler.kill()
        compiler.wait()


def test_without_a_lock_there_is_nothing_to_do(tmp_path):
    assert not remove_abandoned_lock(tmp_path)
    assert not remove_abandoned_lock(tmp_path / "never_built")
