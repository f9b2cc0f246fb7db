"""What on-policy distillation costs on the teachers' side.

    python benchmarks/opd.py scoring [--rounds 7] [--top-k 0]

`scoring`: tokens per second that a teacher scores for us, from traces in the driver to checked arrays in the
driver (queues, plan, a Ray actor, the checks of `rollout.teachers.scoring`), over a bare loop on the same
engine: two threads that post the same token ids in calls of the same size and parse the JSON, and nothing else.
No trace comes twice, so no prefix is ever cached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import requests as http

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Round, interleaved, ratio, row, tree_cpu_seconds, write_result
from benchmarks.teacher_engines import (
    collect,
    manifest_for,
    random_requests,
    running,
    two_engines_reserved,
)
from rlframe.teaching import ScoreRequest
from rollout.engine.server import Keys
from rollout.teachers.scoring import sglang_body

GOAL = 0.92
TRACES, TOKENS, AT_ONCE = 128, 256, 2
TOKENS_IN_FLIGHT = 16_384


class Bare:
    """Posts token ids and parses what comes back."""

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/generate"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._sessions = [http.Session() for _ in range(AT_ONCE)]

    def score(self, requests: Sequence[ScoreRequest]) -> None:
        share = TOKENS_IN_FLIGHT // AT_ONCE // TOKENS
        calls = [requests[at : at + share] for at in range(0, len(requests), share)]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            answers = list(threads.map(self._post, range(len(calls)), calls))
        assert sum(map(len, answers)) == len(requests)

    def _post(self, number: int, requests: Sequence[ScoreRequest]) -> list[Any]:
        body = orjson.dumps(sglang_body(requests), option=orjson.OPT_SERIALIZE_NUMPY)
        session = self._sessions[number % AT_ONCE]
        answer = session.post(self._url, data=body, headers=self._headers, timeout=300)
        parsed: list[Any] = orjson.loads(answer.content)
        return parsed


def scoring(rounds: int, top_k: int) -> list[dict[str, Any]]:
    from tests.tiny_models import save_tiny_qwen3

    keys = Keys()
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        manifest = manifest_for({"t": save_tiny_qwen3(where / "t")})
        said: list[str] = []
        with (
            two_engines_reserved(1) as options,
            running(
                manifest,
                options,
                where / "logs",
                tokens_in_flight=TOKENS_IN_FLIGHT,
                keys=keys,
                progress=said.append,
            ) as pool,
        ):
            bare = Bare(said[0].rpartition(" ")[2], keys.api)
            seed = 0

            def traces() -> list[ScoreRequest]:
                nonlocal seed
                seed += 1
                return random_requests("t", TRACES, seed=seed, length=TOKENS, top_k=top_k)

            def ours() -> Round:
                requests = traces()
                began, cpu = time.perf_counter(), tree_cpu_seconds()
                pool.submit(requests)
                collect(pool, len(requests))
                return _round(began, cpu)

            def theirs() -> Round:
                requests = traces()
                began, cpu = time.perf_counter(), tree_cpu_seconds()
                bare.score(requests)
                return _round(began, cpu)

            found = interleaved({"ours": ours, "bare": theirs}, rounds=rounds)
    share = ratio(found["ours"], found["bare"])
    print(f"{share:.3f} of the bare engine (goal: at least {GOAL})")
    return [
        row("ours", found["ours"], top_k=top_k, of_bare=round(share, 3), goal=GOAL),
        row("bare", found["bare"], top_k=top_k),
    ]


def _round(began: float, cpu: float) -> Round:
    return Round(time.perf_counter() - began, tree_cpu_seconds() - cpu, TRACES * TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("scoring",))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--top-k", type=int, default=0)
    given = parser.parse_args()
    suffix = f"_top_{given.top_k}" if given.top_k else ""
    write_result(f"opd_{given.what}{suffix}", rows=scoring(given.rounds, given.top_k))


if __name__ == "__main__":
    main()
