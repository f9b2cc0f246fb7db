"""Ports of servers that run in processes of their own: one to try, and one that nobody else can get."""

from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """A port nobody listens on now. Another process may take it before us: whoever starts a server tries again."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class HeldPort:
    """A port that stays ours for as long as this object lives, between two starts of its server too.

    The socket is bound and never listens. The kernel then gives the port to nobody who asks for any port,
    connections included, while a server that sets SO_REUSEADDR, as servers do, may listen on it (Linux, socket(7)).
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))
        self.number = int(self._socket.getsockname()[1])
