"""A teacher behind a URL that fails as a script says: what is asked again, what stops, what is skipped."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.teacher_engines import collect, manifest_for, random_requests, running
from rlframe.cluster.connect import connect
from rlframe.config.schema import ClusterConfig
from rlframe.errors import RunError

KEY = "a-key-of-the-test"


class ScriptedServer:
    """SGLang's /generate as far as teachers use it: every logprob is -1, unless `spoil` changes that."""

    def __init__(self) -> None:
        self.asked: list[list[list[int]]] = []
        self.keys: set[str | None] = set()
        self.spoil: Callable[[int, Any], Any] = lambda number, answer: answer
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.keys.add(self.headers["Authorization"])
                outer.asked.append(body["input_ids"])
                answer = outer.spoil(len(outer.asked) - 1, [*map(outer.answer, body["input_ids"])])
                status, content = answer if isinstance(answer, tuple) else (200, answer)
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, ids: list[int]) -> dict[str, Any]:
        entries = [[None if n == 0 else -1.0, i, None] for n, i in enumerate(ids)]
        return {
            "meta_info": {
                "finish_reason": {"type": "length"},
                "weight_version": "default",
                "input_token_logprobs": entries,
            }
        }


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with connect(ClusterConfig(), [], env_name=""):
        yield


@pytest.fixture
def served():
    server = ScriptedServer()
    yield server
    server.http.shutdown()


@pytest.fixture
def start(served, tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    entry = {
        "name": "outside",
        "url": served.url,
        "domains": ["*"],
        "api_key_variable": "TEACHER_KEY",
    }

    def started(**changes):
        return running(manifest_for({}, entry), [], tmp_path, **changes)

    return started


def nan_for(first_of, times):
    """Spoils the answers about the trace that begins with this token, so many times."""
    left = [times]

    def spoil(number, answer):
        for one in answer:
            entries = one["meta_info"]["input_token_logprobs"]
            if entries[0][1] == first_of and left[0]:
                left[0] -= 1
                entries[2][0] = None
        return answer

    return spoil


def test_nonsense_is_asked_again_alone_and_nothing_is_lost(start, served):
    requests = random_requests("outside", 6, seed=1)
    requests[2].token_ids[0] = 2
    served.spoil = nan_for(2, times=2)
    with start(tokens_in_flight=100_000) as pool:
        pool.submit(requests)
        found = collect(pool, 6)
        measured = pool.metrics()
    assert all((found["outside", r.id].logprobs[1:] == -1).all() for r in requests)
    assert (measured["nonsense"], measured["restarts"], measured["skipped"]) == (2, 0, 0)
    bad = [len(call) for call in served.asked if any(ids[0] == 2 for ids in call)]
    assert bad == [6, 1, 1]
    assert served.keys == {f"Bearer {KEY}"}


def test_a_trace_that_never_comes_back_right_is_skipped(start, served):
    requests = random_requests("outside", 6, seed=2)
    requests[2].token_ids[0] = 2
    served.spoil = nan_for(2, times=99)
    with start(on_failure="skip") as pool:
        pool.submit(requests)
        found = collect(pool, 6)
        assert pool.metrics()["skipped"] == 1
    failed = [s for s in found.values() if s.error]
    assert [s.id for s in failed] == [requests[2].id]
    assert "null, as broken weights give" in failed[0].error
    assert (failed[0].logprobs == 0).all()


def test_or_it_stops_the_run(start, served):
    requests = random_requests("outside", 1, seed=3)
    requests[0].token_ids[0] = 2
    served.spoil = nan_for(2, times=99)
    with start() as pool:
        pool.submit(requests)
        with pytest.raises(RunError, match=r"could not score trace .* 3 times"):
            collect(pool, 1)


def test_a_server_that_only_raves_ends_the_run(start, served):
    served.spoil = lambda number, answer: answer if number == 0 else answer[:-1]
    with start(on_failure="skip") as pool:
        pool.submit(random_requests("outside", 2, seed=5))
        with pytest.raises(RunError, match=r"teachers\.max_restarts is used up"):
            collect(pool, 2)


def test_a_server_that_is_away_for_a_while_is_waited_for(start, served):
    served.spoil = lambda number, answer: (503, []) if number in (1, 2) else answer
    with start() as pool:
        pool.submit(random_requests("outside", 1, seed=4))
        collect(pool, 1)
        measured = pool.metrics()
    assert measured["restarts"] == 0
    assert len(served.asked) == 4  # the probe, twice nothing, the answer
