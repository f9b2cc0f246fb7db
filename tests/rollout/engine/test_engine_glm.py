"""GLM-5 in a real SGLang server on the CPU, against transformers 5.23.0: contexts far beyond `index_topk`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_engine import engine_spec
from transformers import AutoConfig, AutoModelForCausalLM

from rlframe import weights
from rlframe.types import Turn
from rollout.engine import expected
from rollout.engine.actor import EngineActor
from rollout.engine.client import EngineClient
from rollout.engine.server import Keys, SglangServer
from tests.trainer.oracle import ask_glm
from tests.trainer.tiny_glm import TINY_GLM

pytestmark = pytest.mark.xdist_group("glm engine")  # one server for all of them
TOLERANCE = 1e-4
SAMPLING = {"temperature": 1.0, "max_new_tokens": 40, "ignore_eos": True}
CONTEXT = 256


def save_glm(directory: Path, *, seed: int) -> Path:
    """Random weights with the router's biases away from zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY_GLM), dtype=torch.float32)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("e_score_correction_bias"):
            tensor.data.uniform_(-0.2, 0.2)
    model.save_pretrained(directory)
    # transformers 5.12.1 adds a num_experts of 256, which 5.23.0 reads.
    described = {**TINY_GLM, "architectures": ["GlmMoeDsaForCausalLM"], "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(described))
    return directory


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_glm(tmp_path_factory.mktemp("glm"), seed=0)


@pytest.fixture(scope="module")
def served(
    glm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SglangServer, Keys, Any]]:
    """Prompts are prefilled in pieces, and the pool is small enough that requests are retracted."""
    keys = Keys()
    arguments = {
        "max_total_tokens": 1500,
        "chunked_prefill_size": 64,
        "enable_return_routed_experts": True,
    }
    spec = engine_spec(glm, tmp_path_factory.mktemp("logs"), arguments=arguments)
    server = SglangServer(spec, keys, host="127.0.0.1")
    server.start()
    yield server, keys, spec
    server.stop()


@pytest.fixture
async def client(served: tuple[SglangServer, Keys, Any]) -> AsyncIterator[EngineClient]:
    server, keys, _ = served
    async with EngineClient(
        server.url,
        headers={"Authorization": f"Bearer {keys.api}"},
        vocab_size=TINY_GLM["vocab_size"],
        max_context_tokens=CONTEXT,
        request_timeout_s=120,
        extras=("routed_experts",),
    ) as made:
        yield made


def prompts(count: int, *, seed: int, longest: int = 150) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, count)
    return [rng.integers(3, TINY_GLM["vocab_size"], n, dtype=np.int32) for n in sizes]


def assert_logprobs(turns: list[Turn], path: Path) -> None:
    """Of all sampled tokens, those of the reference in float32."""
    rows = [
        torch.from_numpy(np.append(t.prompt_ids, np.array(t.output_ids, np.int32))).long()
        for t in turns
    ]
    vocabulary = int(TINY_GLM["vocab_size"])
    answer = ask_glm(path=str(path), rows=rows, weights=torch.ones(vocabulary), save_to="")
    logits = answer["logits"].split([len(r) for r in rows])
    for row, turn, logit in zip(rows, turns, logits, strict=True):
        logprobs = logit.log_softmax(-1)[len(turn.prompt_ids) - 1 : -1]
        expected = logprobs.gather(1, row[len(turn.prompt_ids) :, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=TOLERANCE, rtol=0)


async def sampled(client: EngineClient, asked: list[np.ndarray]) -> list[Turn]:
    return list(await asyncio.gather(*(client.generate(p, sampling=SAMPLING) for p in asked)))


async def test_logprobs_of_many_at_once_in_pieces(
    served: tuple[SglangServer, Keys, Any], client: EngineClient, glm: Path
) -> None:
    """24 at a time are more than the pool holds: some are retracted and begun anew."""
    turns = await sampled(client, prompts(24, seed=1))
    assert_logprobs(turns, glm)
    assert "Retract" in served[0].log.read_text()


async def test_routed_experts_come_back_for_every_token_that_was_computed(
    client: EngineClient,
) -> None:
    (turn,) = await sampled(client, prompts(1, seed=4))
    chosen = np.frombuffer(base64.b64decode(turn.extras["routed_experts"]), np.int32)
    layers, per_token = TINY_GLM["num_hidden_layers"], TINY_GLM["num_experts_per_tok"]
    by_token = chosen.reshape(-1, layers, per_token)
    assert len(by_token) == len(turn.prompt_ids) + len(turn.output_ids) - 1
    sparse = by_token[:, TINY_GLM["first_k_dense_replace"] :]
    assert sparse.min() >= 0
    assert sparse.max() < TINY_GLM["n_routed_experts"]
    assert (sparse[..., 0] != sparse[..., 1]).all(), "two different experts a token"


async def test_a_cached_prefix_has_its_index_keys(client: EngineClient, glm: Path) -> None:
    (first,) = await sampled(client, [prompts(1, seed=2)[0]])
    longer = np.concatenate([first.prompt_ids, np.array(first.output_ids, np.int32), [5, 6, 7]])
    turns = await sampled(client, [longer.astype(np.int32)] * 3)
    assert_logprobs([first, *turns], glm)


async def test_new_weights_are_served_whole(
    served: tuple[SglangServer, Keys, Any], client: EngineClient, tmp_path: Path
) -> None:
    """All of them: experts, the router's biases, the indexers, and what is derived from kv_b_proj."""
    server, _, spec = served
    fresh = save_glm(tmp_path / "fresh", seed=7)
    actor = EngineActor.over(server, spec, Keys())
    actor.sync(weights.build_manifest(str(fresh), version=1), partial=False)
    turns = await sampled(client, prompts(6, seed=3))
    assert {v for t in turns for v in t.versions} == {1}
    assert_logprobs(turns, fresh)


@pytest.mark.parametrize("mtp_layers", [0, 1])
def test_what_a_checkpoint_must_hold_follows_from_its_config(
    glm: Path, tmp_path: Path, mtp_layers: int
) -> None:
    described = json.loads((glm / "config.json").read_text())
    described["num_nextn_predict_layers"] = mtp_layers
    (tmp_path / "config.json").write_text(json.dumps(described))
    from_config = expected.signatures(str(tmp_path), "float32")
    from_files = expected.signatures(str(glm), "float32")
    added = from_config.keys() - from_files.keys()
    assert {n: s for n, s in from_config.items() if n not in added} == from_files
    sparse = [n for n in from_files if n.startswith("model.layers.8.")]
    assert len(added) == mtp_layers * (len(sparse) + 5 + 4), (
        "an indexer's five, and four of its own"
    )
    biases = [n for n in from_config if n.endswith("e_score_correction_bias")]
    assert {expected.signatures(str(tmp_path), "bfloat16")[n][1] for n in biases} == {"F32"}
