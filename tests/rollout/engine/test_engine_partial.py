"""A weight update in the middle of requests, on a real server: which token is of which version.

The reference is transformers in float32. With `partial` SGLang keeps the keys and values that older
weights computed for a request in flight, and so does the reference: it goes on from the cache that
the old model filled. Requests that begin later see nothing of the old weights.
"""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load_file, save_file
from tiny_engine import engine_spec
from transformers import AutoModelForCausalLM

from rlframe import weights
from rlframe.types import Turn, WeightManifest
from rollout.engine.actor import EngineActor
from rollout.engine.client import EngineClient
from rollout.engine.versioned_cache import name_space

PROMPT = np.arange(5, 45, dtype=np.int32)
LONG = {"temperature": 1.0, "max_new_tokens": 400, "ignore_eos": True}
SHORT = {**LONG, "max_new_tokens": 40}
TOLERANCE = 1e-4


@pytest.fixture
def actor(server, tiny_model, keys, tmp_path):
    return EngineActor.over(server, engine_spec(tiny_model, tmp_path), keys)


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


def published(source: Path, directory: Path, version: int) -> WeightManifest:
    """The model with weights of its own for this version, and its configuration beside them."""
    directory.mkdir()
    g = torch.Generator().manual_seed(version)
    tensors = load_file(source / "model.safetensors")
    changed = {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in tensors.items()}
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", directory)
    return weights.build_manifest(str(directory), version=version)


def reference_logprobs(turn: Turn, models: dict[int, torch.nn.Module]) -> list[float]:
    """log p of every sampled token, each version's part by its model over the cache so far."""
    cache, given = None, turn.prompt_ids.tolist()
    found: list[float] = []
    for version in sorted(set(turn.versions)):
        part = [i for i, v in zip(turn.output_ids, turn.versions, strict=True) if v == version]
        with torch.no_grad():
            answer = models[version](
                torch.tensor([given + part[:-1]]), past_key_values=cache, use_cache=True
            )
        logprobs = answer.logits[0, len(given) - 1 :].log_softmax(-1)
        found += logprobs[torch.arange(len(part)), part].tolist()
        cache, given = answer.past_key_values, part[-1:]
    return found


async def turns_over_an_update(
    client: EngineClient, actor: EngineActor, manifest: WeightManifest, *, partial: bool
) -> tuple[Turn, Turn]:
    """A long request in whose middle the update begins, and one that is sent after the update."""
    long = asyncio.create_task(client.generate(PROMPT, sampling=LONG))
    await client.generate(
        PROMPT[:3], sampling=SHORT
    )  # beside it: 40 of its 400 tokens, more or less
    assert not long.done()
    await asyncio.to_thread(actor.sync, manifest, partial=partial)
    return await long, await client.generate(PROMPT, sampling=SHORT)


def models_of(*manifests: WeightManifest) -> dict[int, torch.nn.Module]:
    return {
        m.version: AutoModelForCausalLM.from_pretrained(m.directory, dtype=torch.float32)
        for m in manifests
    }


@pytest.mark.parametrize("partial", [True, False])
async def test_every_token_has_the_logprob_of_its_version(
    actor, client, tiny_model, tmp_path, partial
):
    old = published(tiny_model, tmp_path / "old", 100)
    new = published(tiny_model, tmp_path / "new", 101)
    actor.sync(old, partial=False)
    long, later = await turns_over_an_update(client, actor, new, partial=partial)

    assert list(long.versions) == sorted(long.versions)
    assert set(long.versions) == ({100, 101} if partial else {100})
    assert set(later.versions) == {101}
    models = models_of(old, new)
    for turn in (long, later):
        expected = reference_logprobs(turn, models)
        np.testing.assert_allclose(turn.logprobs, expected, atol=TOLERANCE)
    other = reference_logprobs(later, {101: models[100]})
    assert np.abs(np.subtract(later.logprobs, other)).mean() > 100 * TOLERANCE


def cached_tokens(server, keys) -> int:
    """How much of the prompt the engine took from its cache."""
    answer = requests.post(
        f"{server.url}/generate",
        json={"input_ids": PROMPT.tolist(), "sampling_params": {"max_new_tokens": 1}},
        headers={"Authorization": f"Bearer {keys.api}"},
        timeout=60,
    ).json()
    return int(answer["meta_info"]["cached_tokens"])


def test_a_cached_prefix_serves_its_own_version_only(actor, server, keys, tiny_model, tmp_path):
    actor.sync(published(tiny_model, tmp_path / "old", 110), partial=False)
    assert [cached_tokens(server, keys) for _ in range(2)] == [0, len(PROMPT) - 1]
    actor.sync(published(tiny_model, tmp_path / "new", 111), partial=True)
    assert [cached_tokens(server, keys) for _ in range(2)] == [0, len(PROMPT) - 1]


def test_a_cached_prefix_serves_its_own_weights_only(actor, server, keys, tiny_model, tmp_path):
    """Experts, one after the other, are served under their student's version."""
    for name in ("one", "other"):
        directory = tmp_path / name
        directory.mkdir()
        actor.sync(published(tiny_model, directory / "new", 112), partial=False)
        assert [cached_tokens(server, keys) for _ in range(2)] == [0, len(PROMPT) - 1]


async def test_an_update_with_a_request_in_flight_kills_nothing(
    actor, client, server, keys, tiny_model, tmp_path
):
    """Whoever sends it: SGLang 0.5.20 by itself would die of the flush that an update means."""
    manifest = published(tiny_model, tmp_path / "new", 113)
    long = asyncio.create_task(client.generate(PROMPT, sampling=LONG))
    await client.generate(PROMPT[:3], sampling=SHORT)
    server.control.pause("in_place")
    update = {"model_path": manifest.directory, "weight_version": "113", "flush_cache": True}
    answer = await asyncio.to_thread(
        requests.post,
        f"{server.url}/update_weights_from_disk",
        json=update,
        headers={"Authorization": f"Bearer {keys.admin}"},
        timeout=60,
    )
    server.control.resume()
    assert answer.json()["success"]
    assert not long.done()
    assert len((await long).output_ids) == LONG["max_new_tokens"]


def test_name_spaces():
    assert name_space(None, 3) == "weights=3|"
    assert name_space("weights=3|adapter", 4) == "weights=4|adapter"
