"""A judge behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence

import httpx

from rlframe.errors import UserError
from rlframe.interfaces import Ask
from rlframe.types import Message

MAX_TOKENS = 2000


def endpoint(url: str, model: str, *, key_env: str, timeout_s: float) -> Ask:
    """`url` ends before `/chat/completions`. UserError where the key's variable is not set."""
    headers = {}
    if key_env:
        key = os.environ.get(key_env)
        if not key:
            raise UserError(f"guard.judge.key_env={key_env}: no such environment variable here")
        headers["Authorization"] = f"Bearer {key}"
    client = httpx.AsyncClient(headers=headers, timeout=timeout_s, trust_env=False)

    async def ask(messages: Sequence[Message]) -> str:
        body = {
            "model": model,
            "messages": [dict(m) for m in messages],
            "temperature": 0.0,
            "max_tokens": MAX_TOKENS,
        }
        response = await client.post(f"{url.rstrip('/')}/chat/completions", json=body)
        response.raise_for_status()
        content = response.json()["choices"][0]["message"]["content"]
        return str(content or "")

    return ask
