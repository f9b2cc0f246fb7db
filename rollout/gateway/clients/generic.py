"""Any other program (mini-swe-agent, aider, openai-agents): nothing in a request tells who
asks, and the conversations alone tell threads apart."""

from __future__ import annotations

from rollout.chat import Identity
from rollout.gateway.clients.seen import Seen, small_model


def identify(seen: Seen) -> Identity:
    return Identity(kind=small_model(seen))
