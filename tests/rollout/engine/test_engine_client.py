"""The client against a real SGLang server: ids, logprobs, versions; and what never reaches the server."""

import asyncio

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlframe.errors import InfraFault
from rlframe.types import Int32Array
from rollout.engine.client import EngineClient, _versions

SAMPLING = {"temperature": 1.0, "max_new_tokens": 12}


@pytest.fixture
async def client(server, keys):
    async with EngineClient(
        server.url,
        headers={"Authorization": f"Bearer {keys.api}"},
        vocab_size=304,
        max_context_tokens=512,
        request_timeout_s=60,
    ) as made:
        yield made


def ids(tokens: list[int]) -> Int32Array:
    return np.array(tokens, np.int32)


async def test_logprobs_are_those_of_transformers(client, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    prompts = [[3, 4, 5, 6], [9] * 20, [100]]
    turns = await asyncio.gather(*[client.generate(ids(p), sampling=SAMPLING) for p in prompts])
    for prompt, turn in zip(prompts, turns, strict=True):
        assert turn.prompt_ids.tolist() == prompt
        assert len(turn.output_ids) == len(turn.logprobs) == len(turn.versions)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(turn.output_ids)])).logits[0]
        logp = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        expected = logp.gather(1, torch.tensor(turn.output_ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=2e-5, rtol=0)


async def test_stop_tokens_end_a_turn_and_are_part_of_it(client):
    every = list(range(304))
    turn = await client.generate(ids([5, 6]), sampling={**SAMPLING, "stop_token_ids": every})
    assert turn.finish_reason == "stop"
    assert len(turn.output_ids) == 1


@pytest.mark.parametrize(
    ("input_ids", "sampling", "message"),
    [
        ([], SAMPLING, "at least one token"),
        ([304], SAMPLING, "token id 304 is outside the vocabulary of 304"),
        ([3, -1], SAMPLING, "token id -1 is outside"),
        ([3] * 510, SAMPLING, "leave 2 of 512"),
        ([3], {"temperature": float("nan"), "max_new_tokens": 1}, "temperature=nan"),
        ([3], {"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
async def test_what_would_kill_the_engine_never_reaches_it(client, input_ids, sampling, message):
    with pytest.raises(ValueError, match=message):
        await client.generate(ids(input_ids), sampling=sampling)
    assert (await client.generate(ids([3]), sampling=SAMPLING)).output_ids


async def test_without_the_key_nothing_is_answered(server):
    async with EngineClient(
        server.url,
        headers={},
        vocab_size=304,
        max_context_tokens=512,
        request_timeout_s=10,
    ) as stranger:
        with pytest.raises(InfraFault, match="401"):
            await stranger.generate(ids([3]), sampling=SAMPLING)


async def test_an_engine_that_is_not_there_is_an_infra_fault():
    async with EngineClient(
        "http://127.0.0.1:9",
        headers={},
        vocab_size=304,
        max_context_tokens=512,
        request_timeout_s=0.2,
    ) as nobody:
        with pytest.raises(InfraFault, match="can't be reached"):
            await nobody.generate(ids([3]), sampling=SAMPLING)


def test_versions_cover_every_token():
    spans = {
        "weight_versions": [
            {"version": "3", "start": 0, "end": 2},
            {"version": "4", "start": 2, "end": 3},
        ]
    }
    assert _versions(spans, 3) == (3, 3, 4)
    with pytest.raises(InfraFault, match="weight versions for 3 of 4"):
        _versions(spans, 4)
