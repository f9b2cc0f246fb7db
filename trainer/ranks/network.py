"""Which network interface the ranks talk over: the one that Ray knows this node by."""

from __future__ import annotations

import os

import psutil


def use_interface_of(address: str) -> None:
    """Points gloo and NCCL at the interface with this IP address, unless the user chose one.

    By default gloo resolves the host's name, which is 127.0.1.1 on many machines: ranks on other
    hosts would then try to connect to themselves.
    """
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """None if no interface of this host has the address (a NAT, a virtual address)."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            return str(name)
    return None
