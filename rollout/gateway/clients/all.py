"""Which program is calling, and what it says of itself."""

from __future__ import annotations

from rollout.chat import Identity
from rollout.gateway.clients import claude_code, codex, generic, opencode, qwen_code, terminus_2
from rollout.gateway.clients.seen import Identify, Seen

RECOGNISED: tuple[Identify, ...] = (
    claude_code.identify,
    codex.identify,
    opencode.identify,
    qwen_code.identify,
    terminus_2.identify,
)


def recognise(seen: Seen) -> Identity:
    for identify in RECOGNISED:
        identity = identify(seen)
        if identity is not None:
            return identity
    return generic.identify(seen)
