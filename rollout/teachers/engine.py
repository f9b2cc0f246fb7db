"""The Ray actors that score: an engine on which teachers take turns, and a server outside of the run.

Methods block; the actor runs several at a time (`CONCURRENCY`): two calls that score, so that the engine
never waits for the next, one that makes the next teacher ready, one that feels the pulse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import orjson
import requests as http

from rlframe.errors import InfraFault
from rlframe.machine import GIB, shared_memory_gib
from rlframe.teachers.checkpoints import TeacherCheckpoint
from rlframe.teachers.manifest import Teacher
from rlframe.teaching import ScoreRequest, TeacherScores
from rlframe.weights import open_directory
from rollout.engine.actor import EngineActor, EngineInfo
from rollout.engine.expected import Signature
from rollout.engine.pulse import Sign
from rollout.engine.server import EngineSpec, Keys
from rollout.teachers import scoring
from rollout.teachers.staging import Staging

CONCURRENCY = 5
RESERVED_TOKENS = 16
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 10.0
RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that answers."""

    info: EngineInfo
    shared_memory_bytes: int
    """Free on its node, before any teacher was copied there."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One call's scores, and the seconds that the engine took for them."""

    scores: list[TeacherScores]
    seconds: float


class TeacherEngine:
    """One SGLang server on which teachers take turns. Made a Ray actor by the pool."""

    def __init__(
        self,
        spec: EngineSpec,
        keys: Keys,
        *,
        one_host: bool,
        checkpoints: Mapping[str, TeacherCheckpoint],
        staging_directory: str,
        vocab_size: int,
        timeout_s: float,
    ) -> None:
        """`spec`'s model is replaced by that of the teacher it starts with."""
        self._spec, self._keys, self._one_host = spec, keys, one_host
        self._checkpoints = checkpoints
        self._staging = Staging(staging_directory, checkpoints)
        self._vocab_size, self._timeout_s = vocab_size, timeout_s
        self._engine: EngineActor | None = None
        self._info: EngineInfo | None = None
        self._architecture = ""

    def start(self, teacher: str) -> Started:
        """The server, with a teacher's files but no version yet: a swap must follow."""
        free = shared_memory_gib()
        return Started(self._serve(teacher), int((free or 0.0) * GIB))

    def stage(self, teacher: str, *, keep: bool) -> float:
        """Makes its weights ready while others score; returns the seconds that took."""
        began = time.perf_counter()
        manifest = self._staging.ready(teacher, keep=keep)
        if self._engine is not None and self._fits(teacher):
            # The engine's version is another by the time of the swap; here only files count.
            self._engine.check_ahead(replace(manifest, version=2**62))
        return time.perf_counter() - began

    def swap(self, teacher: str, version: int, *, keep: bool) -> dict[str, float]:
        """To `teacher` at `version`, checked and confirmed as every sync of weights; where the teacher
        computes otherwise than the one that is loaded, the server starts anew. Seconds by part."""
        began = time.perf_counter()
        manifest = self._staging.ready(teacher, keep=keep)
        restarted = not self._fits(teacher)
        if restarted:
            self.stop()
            self._serve(teacher)
        ready = time.perf_counter()
        assert self._engine is not None
        times = self._engine.sync(replace(manifest, version=version), partial=False)
        return {
            **times,
            "ready_s": ready - began,
            "total_s": time.perf_counter() - began,
            "restarted": float(restarted),
        }

    def score(self, requests: Sequence[ScoreRequest], version: int) -> Scored:
        """All of them by the teacher at `version`. InfraFault where the server fails or raves."""
        if self._info is None:
            raise InfraFault("the engine is not started")
        began = time.perf_counter()
        headers = {"Authorization": f"Bearer {self._keys.api}"}
        body = scoring.sglang_body(requests)
        answer = _post(f"{self._info.url}/generate", headers, body, timeout_s=self._timeout_s)
        scores = scoring.read_sglang(
            answer, requests, version=str(version), vocab_size=self._vocab_size
        )
        return Scored(scores, time.perf_counter() - began)

    def sign(self, *, timeout_s: float) -> Sign | None:
        return self._engine.sign(timeout_s=timeout_s) if self._engine else None

    def generates(self, *, timeout_s: float) -> bool:
        return self._engine is not None and self._engine.generates(timeout_s=timeout_s)

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.stop()
        self._engine = self._info = None

    def close(self) -> None:
        """At the end of the run."""
        self.stop()
        self._staging.remove()

    def _fits(self, teacher: str) -> bool:
        return self._checkpoints[teacher].architecture == self._architecture

    def _serve(self, teacher: str) -> EngineInfo:
        checkpoint = self._checkpoints[teacher]
        spec = replace(
            self._spec,
            model_directory=checkpoint.directory,
            dtype=checkpoint.dtype,
            arguments={**_room(checkpoint), **self._spec.arguments},
        )
        self._engine = EngineActor(
            spec, self._keys, one_host=self._one_host, signatures=_as_stored(checkpoint.directory)
        )
        self._info = self._engine.start()
        self._architecture = checkpoint.architecture
        return self._info


class ServedTeacher:
    """A teacher that somebody else serves. The same methods, as far as they mean anything here."""

    def __init__(
        self, teacher: Teacher, *, api_key: str, vocab_size: int, timeout_s: float
    ) -> None:
        self._teacher, self._vocab_size, self._timeout_s = teacher, vocab_size, timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def start(self, teacher: str) -> Started:
        """One token is scored. InfraFault where nobody answers in time."""
        import numpy as np

        probe = ScoreRequest("probe", teacher, np.array([0, 0], np.int32), begin=1)
        self.score([probe], 0)
        return Started(EngineInfo(self._teacher.url, -1, ""), 0)

    def score(self, requests: Sequence[ScoreRequest], version: int) -> Scored:
        """Tries again while nobody answers, within `timeout_s`: nobody here can start it again."""
        began = time.perf_counter()
        sglang = self._teacher.api == "sglang"
        path = "/generate" if sglang else "/v1/completions"
        body = (
            scoring.sglang_body(requests)
            if sglang
            else scoring.completions_body(requests, self._teacher.model)
        )
        url = self._teacher.url.rstrip("/") + path
        answer = _post_until(url, self._headers, body, timeout_s=self._timeout_s)
        if sglang:
            scores = scoring.read_sglang(
                answer, requests, version=None, vocab_size=self._vocab_size
            )
        else:
            scores = scoring.read_completions(answer, requests)
        return Scored(scores, time.perf_counter() - began)

    def close(self) -> None:
        """The server is not ours."""


def _room(checkpoint: TeacherCheckpoint) -> dict[str, int]:
    """SGLang 0.5.20 keeps a few tokens of the context for what it samples (`max_req_input_len`): a trace as
    long as the context would be refused. No position beyond the model's own is ever computed."""
    if not checkpoint.positions:
        return {}
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = (
        "1"  # of this actor and its server alone
    )
    return {"context_length": checkpoint.positions + RESERVED_TOKENS}


def _as_stored(directory: str) -> dict[str, Signature]:
    return {
        name: (tensor.shape, tensor.dtype) for name, tensor in open_directory(directory).items()
    }


def _post_until(
    url: str, headers: Mapping[str, str], body: Mapping[str, object], *, timeout_s: float
) -> object:
    deadline = time.monotonic() + timeout_s
    backoff_s = FIRST_BACKOFF_S
    while True:
        try:
            return _post(url, headers, body, timeout_s=timeout_s)
        except Refused:
            raise
        except InfraFault:
            if time.monotonic() + backoff_s > deadline:
                raise
        time.sleep(backoff_s)
        backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)


class Refused(InfraFault):
    """The server answered, and asking again is no use."""


def _post(
    url: str, headers: Mapping[str, str], body: Mapping[str, object], *, timeout_s: float
) -> object:
    data = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    try:
        with http.Session() as session:
            session.trust_env = False  # a proxy of the environment must never see the keys
            answer = session.post(
                url,
                data=data,
                headers={**headers, "Content-Type": "application/json"},
                timeout=timeout_s,
            )
    except http.RequestException as error:
        raise InfraFault(f"POST {url}: {error}") from error
    if not answer.ok:
        kind = InfraFault if answer.status_code in RETRIED else Refused
        raise kind(f"POST {url}: {answer.status_code} {answer.text[:300]}")
    try:
        parsed: object = orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise InfraFault(f"POST {url}: the answer is not JSON: {answer.text[:100]!r}") from error
    return parsed
