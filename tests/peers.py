"""Where the packages are that adapters adapt (`scripts/install_peers.py`), for tests that use the real ones."""

from __future__ import annotations

import pytest

from envs.adapters.peer import peer_python


def needs_peer(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is not installed: python scripts/install_peers.py {name}"
    return pytest.mark.skipif(not peer_python(name), reason=reason)
