"""Four teachers, one of another architecture, and one by URL, on two real engines, against transformers."""

from __future__ import annotations

import os
import signal

import numpy as np
import psutil
import pytest
import torch
from tiny_engine import engine_spec
from tiny_models import save_tiny_qwen3
from transformers import AutoModelForCausalLM

from benchmarks.teacher_engines import (
    VOCAB_SIZE,
    collect,
    manifest_for,
    random_requests,
    running,
    two_engines_reserved,
)
from rlframe.teaching import ScoreRequest
from rollout.engine.server import Keys, SglangServer

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    where = tmp_path_factory.mktemp("teachers")
    made = {n: save_tiny_qwen3(where / n, seed=i) for i, n in enumerate(("ada", "bo", "cy"))}
    made["deep"] = save_tiny_qwen3(where / "deep", seed=7, num_hidden_layers=3, hidden_size=32)
    return made


@pytest.fixture(scope="module")
def models(teachers):
    return {n: AutoModelForCausalLM.from_pretrained(p).float() for n, p in teachers.items()}


@pytest.fixture(scope="module")
def served(teachers, tmp_path_factory):
    """`ada` again, by a server outside of the run."""
    keys = Keys()
    server = SglangServer(
        engine_spec(teachers["ada"], tmp_path_factory.mktemp("served")), keys, host="127.0.0.1"
    )
    server.start()
    os.environ["SERVED_TEACHER_KEY"] = keys.api
    yield server
    server.stop()


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def pool(teachers, served, said, tmp_path_factory):
    outside = {
        "name": "outside",
        "url": served.url,
        "tokenizer": "x",
        "domains": ["*"],
        "api_key_variable": "SERVED_TEACHER_KEY",
    }
    manifest = manifest_for(teachers, outside)
    with (
        two_engines_reserved() as options,
        running(manifest, options, tmp_path_factory.mktemp("logs"), on_event=said.append) as up,
    ):
        yield up


def logprobs_of(model, ids):
    """[T, V], of position t given those before; row 0 is nothing."""
    with torch.no_grad():
        logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0].double()
    return torch.log_softmax(logits, -1).roll(1, 0).numpy()


def check(scores, request, model):
    wanted = logprobs_of(model, request.token_ids)
    at = np.arange(request.begin, len(request.token_ids))
    assert (scores.logprobs[: request.begin] == 0).all()
    own = wanted[at, request.token_ids[at]]
    np.testing.assert_allclose(scores.logprobs[at], own, atol=TOLERANCE)
    if request.top_k:
        best = np.sort(wanted[at], -1)[:, ::-1][:, : request.top_k]
        np.testing.assert_allclose(scores.top_logprobs[at], best, atol=TOLERANCE)
        of_ids = np.take_along_axis(wanted[at], scores.top_ids[at].astype(np.int64), -1)
        np.testing.assert_allclose(scores.top_logprobs[at], of_ids, atol=TOLERANCE)


def test_scores_are_those_of_transformers(pool, models):
    requests = []
    for number, name in enumerate([*models, "outside"]):
        begins = (1, 20, 47)
        for begin in begins:
            requests += random_requests(name, 3, seed=10 * number + begin, begin=begin)
        requests += random_requests(name, 3, seed=200 + number, top_k=8, begin=5)
    last = np.arange(VOCAB_SIZE - 8, VOCAB_SIZE, dtype=np.int32)  # SGLang echoes the last id as 0
    requests.append(ScoreRequest("last", "bo", last, begin=1))
    requests += random_requests("cy", 1, seed=300, length=2048, begin=2000)  # its whole context
    # The same prefixes again: what is cached must leave out nothing.
    requests += [
        ScoreRequest(f"{r.id}-again", r.teacher, r.token_ids, r.begin, r.top_k) for r in requests
    ]
    pool.metrics()
    pool.submit(requests)
    found = collect(pool, len(requests))
    for request in requests:
        model = models["ada" if request.teacher == "outside" else request.teacher]
        check(found[request.teacher, request.id], request, model)
    measured = pool.metrics()
    assert measured["traces"] == len(requests)
    assert measured["swaps"] >= 4
    assert measured["tokens"] == sum(len(r.token_ids) for r in requests)
    assert 0 < measured["utilisation"] <= 1
    assert measured["nonsense"] == measured["requeued"] == 0


def engine_processes():
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if any("rollout.engine.launcher" in part for part in p.cmdline())
        and any(child.is_running() for child in p.children())
    ]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_while_it_scores_loses_nothing(
    pool, models, served, said, blow
):
    said.clear()
    requests = [
        r
        for number, name in enumerate(("ada", "bo", "cy"))
        for r in random_requests(name, 120, seed=1000 + number + 10 * blow, length=200)
    ]
    pool.metrics()
    pool.submit(requests)
    early = pool.collect(timeout_s=120.0)  # it is in the middle of it
    victim = next(p for p in engine_processes() if p.pid != served.pid)
    for process in [victim, *victim.children(recursive=True)]:
        os.kill(process.pid, blow)
    found = {(s.teacher, s.id): s for s in early} | collect(pool, len(requests) - len(early))
    assert len(found) == len(requests)
    for request in requests[::20]:
        check(found[request.teacher, request.id], request, models[request.teacher])
    measured = pool.metrics()
    assert measured["restarts"] == 1
    assert measured["skipped"] == 0
    assert "started again" in said[0]


def test_requests_that_could_harm_an_engine_are_refused(pool):
    (good,) = random_requests("ada", 1, seed=5)
    wrong = [
        ScoreRequest("x", "nobody", good.token_ids, 1),
        ScoreRequest("x", "ada", good.token_ids, 0),
        ScoreRequest("x", "ada", good.token_ids, 48),
        ScoreRequest("x", "ada", good.token_ids + 300, 1),
    ]
    for request in wrong:
        with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
            pool.submit([request])
