"""A held port: nobody else's, whatever is asked of the kernel, and still its server's."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from rollout.engine.ports import HeldPort, free_port
from rollout.engine.router import Router
from rollout.engine.server import Keys

HOST = "127.0.0.1"
IP_LOCAL_PORT_RANGE = 51
"""Of linux/in.h."""


def test_nobody_else_gets_it() -> None:
    held = HeldPort(HOST)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, held.number))


def connects_from(port: int) -> bool:
    """Whether the kernel gives this port to a connection that may have no other (ip(7))."""
    with socket.create_server((HOST, 0)) as server, socket.socket() as client:
        try:
            client.setsockopt(
                socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port << 16 | port)
            )
        except OSError:
            pytest.skip("the option is there since Linux 6.3")
        try:
            client.connect(server.getsockname())
        except OSError:
            return False
        return True


def test_the_kernel_gives_it_to_no_connection() -> None:
    """Which is how a router lost its port: to a connection that was made before it had started."""
    assert connects_from(free_port(HOST))
    held = HeldPort(HOST)
    assert not connects_from(held.number)


def test_a_router_starts_on_it_and_again(tmp_path: Path) -> None:
    router = Router(host=HOST, keys=Keys(), arguments={}, log_directory=str(tmp_path))
    port = int(router.url.rpartition(":")[2])
    try:
        router.start()
        router.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))
        router.restart([])
        assert router.alive
    finally:
        router.stop()
