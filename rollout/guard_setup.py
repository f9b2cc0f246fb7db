"""A worker's guard, and how it may ask an engine of the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlframe.interfaces import Ask, Guard
from rlframe.types import Message
from rollout.engine.client import EngineClient
from rollout.policy_client import Generate
from rollout.renderer import Renderer
from rollout.worker_spec import WorkerSpec

ANSWER_TOKENS = 512


def guard_of(spec: WorkerSpec, client: EngineClient, renderer: Renderer) -> Guard | None:
    if spec.make_guard is None:
        return None
    return spec.make_guard(ask_engine(client.generate, renderer))


def ask_engine(generate: Generate, renderer: Renderer) -> Ask:
    """Greedily, with the weights that the engines serve at that time. Nothing of it is captured."""

    async def ask(messages: Sequence[Message]) -> str:
        turn = await generate(
            np.array(renderer.prompt(messages, ()), np.int32),
            sampling={
                "temperature": 0.0,
                "max_new_tokens": ANSWER_TOKENS,
                "stop_token_ids": list(renderer.stop_token_ids),
            },
            routing_key="guard",
        )
        return renderer.text(turn.output_ids)

    return ask
