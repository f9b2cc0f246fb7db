"""A callback of transformers' Trainer that does a step whenever it is asked for, for `PeerProcess`."""

from __future__ import annotations

import json
import sys
import time

from transformers import TrainerCallback


class OnRequest(TrainerCallback):
    """Answers after each step, and holds the next until it is asked for."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._began: tuple[float, float] | None = None

    def wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self._began = (time.perf_counter(), time.process_time())

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        assert self._began is not None
        seconds = time.perf_counter() - self._began[0]
        cpu = time.process_time() - self._began[1]
        done = {"peer": "round", "seconds": seconds, "cpu_seconds": cpu, "tokens": self._tokens}
        print(json.dumps(done), flush=True)
        self.wait()
