"""What tests of and on sandboxes share."""

from __future__ import annotations

import shutil

import pytest

from envs.sandbox.spec import SandboxSpec
from rlframe.sandbox.limits import Quotas

MIB = 1 << 20
needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed: apt-get install bubblewrap"
)
SMALL = SandboxSpec(
    quotas=Quotas(memory_bytes=256 * MIB, disk_bytes=32 * MIB, files=5000, processes=48)
)
