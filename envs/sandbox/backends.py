"""Backends by name, for `env.args.backend`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from envs.sandbox.bwrap import open_bwrap
from envs.sandbox.docker import open_docker
from envs.sandbox.local import open_local
from envs.sandbox.remote import open_remote
from envs.sandbox.spec import SandboxSpec
from rlframe.sandbox.protocol import Sandbox

Opens = Callable[[SandboxSpec], Awaitable[Sandbox]]

BACKENDS: Mapping[str, Opens] = MappingProxyType(
    {"bwrap": open_bwrap, "docker": open_docker, "remote": open_remote, "local": open_local}
)
