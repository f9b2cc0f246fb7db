"""Requests for prompt logprobs, and answers that are believed only once they have been looked at.

SGLang reads the tokens and samples none (`max_new_tokens=0`). It answers one entry a position from
`logprob_start_len` on, `[logprob, id, text]`, the first without a logprob; the likeliest tokens come as flat
arrays in base64. A cached prefix never reaches beyond `logprob_start_len`: no position is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlframe.errors import InfraFault
from rlframe.teaching import ScoreRequest, TeacherScores
from rlframe.types import Float32Array

ROUND_OFF = 1e-3
"""A logprob may be this much above 0."""


class Nonsense(InfraFault):
    """A teacher answered, and the answer can't be one: its weights or its server are broken."""


def sglang_body(requests: Sequence[ScoreRequest]) -> dict[str, Any]:
    """Of POST /generate, for requests of one `top_k`."""
    body: dict[str, Any] = {
        "input_ids": [request.token_ids for request in requests],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": [request.begin - 1 for request in requests],
    }
    if requests[0].top_k:
        body |= {
            "top_logprobs_num": requests[0].top_k,
            "return_flat_raw_top_logprobs": True,
            "return_flat_raw_top_logprobs_b64": True,
        }
    return body


def read_sglang(
    answer: Any, requests: Sequence[ScoreRequest], *, version: str | None, vocab_size: int
) -> list[TeacherScores]:
    """In the order of `requests`. `version`: the weights that must have answered; None: any.

    Raises Nonsense for answers too few or too short, of other tokens or other weights, or with logprobs
    that are no logprobs.
    """
    if not isinstance(answer, list) or len(answer) != len(requests):
        raise Nonsense(f"{len(requests)} traces were asked about, the answer is not about as many")
    return [
        _read_one(one, request, version=version, vocab_size=vocab_size)
        for one, request in zip(answer, requests, strict=True)
    ]


def _read_one(
    answer: Any, request: ScoreRequest, *, version: str | None, vocab_size: int
) -> TeacherScores:
    try:
        meta = answer["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            raise InfraFault(f"the teacher aborted: {meta['finish_reason'].get('message', '')}")
        if version is not None and str(meta["weight_version"]) != version:
            raise Nonsense(f"weights {meta['weight_version']} answered, not {version}")
        entries = meta["input_token_logprobs"]
        _check_tokens([entry[1] for entry in entries], request, vocab_size=vocab_size)
        scores = [entry[0] for entry in entries[1:]]
        tops = _tops(meta, request, vocab_size=vocab_size) if request.top_k else (None, None)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Nonsense(f"the teacher's answer is not understood: {error!r}") from error
    return TeacherScores(
        id=request.id,
        teacher=request.teacher,
        logprobs=whole(scores, request),
        top_ids=tops[0],
        top_logprobs=tops[1],
    )


def whole(scores: Sequence[float | None], request: ScoreRequest) -> Float32Array:
    """[T] from the scores of `begin` on, checked. Raises Nonsense."""
    wanted = len(request.token_ids) - request.begin
    if len(scores) != wanted:
        raise Nonsense(f"{len(scores)} logprobs for {wanted} tokens of trace {request.id}")
    if None in scores:
        raise Nonsense(f"a logprob of trace {request.id} is null, as broken weights give")
    logprobs = np.zeros(len(request.token_ids), np.float32)
    logprobs[request.begin :] = scores
    _check_logprobs(logprobs, request)
    return np.minimum(logprobs, 0.0)


def _check_logprobs(logprobs: npt.NDArray[np.float32], request: ScoreRequest) -> None:
    if not np.isfinite(logprobs).all():
        raise Nonsense(f"a logprob of trace {request.id} is not finite")
    if logprobs.size and logprobs.max() > ROUND_OFF:
        raise Nonsense(f"a logprob of trace {request.id} is {logprobs.max():.3g}, above 0")


def _check_tokens(ids: Sequence[int], request: ScoreRequest, *, vocab_size: int) -> None:
    """SGLang 0.5.20 echoes the last id of its vocabulary as 0 (it takes it for an image's)."""
    asked = request.token_ids[request.begin - 1 :]
    given = np.asarray(ids, np.int32)
    if given.shape != asked.shape:
        raise Nonsense(f"{len(given)} positions for {len(asked)} of trace {request.id}")
    other = (given != asked) & ~((given == 0) & (asked >= vocab_size - 1))
    if other.any():
        at = int(np.flatnonzero(other)[0])
        raise Nonsense(
            f"the answer is about token {given[at]} where trace {request.id} has {asked[at]}"
        )


def _tops(
    meta: Mapping[str, Any], request: ScoreRequest, *, vocab_size: int
) -> tuple[npt.NDArray[np.int32], Float32Array]:
    """([T, k] ids, [T, k] logprobs), zeros before `begin`."""
    length, begin, k = len(request.token_ids), request.begin, request.top_k
    shape = tuple(meta["input_top_logprobs_shape"])
    if shape != (length - begin, k) or meta["input_top_logprobs_null_prefix"] != 1:
        raise Nonsense(f"likeliest tokens of shape {shape}, not {(length - begin, k)}")
    ids = np.zeros((length, k), np.int32)
    logprobs = np.zeros((length, k), np.float32)
    ids[begin:] = _array(meta["input_top_logprobs_idx_flat_b64"], np.int32).reshape(shape)
    logprobs[begin:] = _array(meta["input_top_logprobs_val_flat_b64"], np.float32).reshape(shape)
    _check_logprobs(logprobs, request)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise Nonsense(f"a likeliest token of trace {request.id} is outside of the vocabulary")
    return ids, np.minimum(logprobs, 0.0)


def _array(text: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), dtype)


def completions_body(requests: Sequence[ScoreRequest], model: str) -> dict[str, Any]:
    """Of an OpenAI-like POST /v1/completions that echoes the prompt with its logprobs."""
    return {
        "model": model,
        "prompt": [request.token_ids for request in requests],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }


def read_completions(answer: Any, requests: Sequence[ScoreRequest]) -> list[TeacherScores]:
    """As `read_sglang`. Such a server says no ids: only lengths and numbers can be checked."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [choice["logprobs"]["token_logprobs"] for choice in choices]
    except (KeyError, TypeError) as error:
        raise Nonsense(f"the teacher's answer is not understood: {error!r}") from error
    if len(found) != len(requests):
        raise Nonsense(f"{len(requests)} traces were asked about, the answer is about {len(found)}")
    scored = []
    for request, logprobs in zip(requests, found, strict=True):
        length = len(request.token_ids)
        if len(logprobs) not in (length, length + 1):  # with or without the one that it sampled
            raise Nonsense(f"{len(logprobs)} logprobs for {length} tokens of trace {request.id}")
        scores = whole(logprobs[request.begin : length], request)
        scored.append(TeacherScores(request.id, request.teacher, scores))
    return scored
