"""Token ids in, token ids out: the model calls of the rollout side.

Whatever could kill or corrupt an engine is refused here: SGLang 0.5.20 dies of a token id outside the
vocabulary, and answers `null` logprobs where weights are broken.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rlframe.errors import InfraFault
from rlframe.types import Int32Array, Turn
from rollout.engine.http_pool import HttpPool, header_lines

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0
RETRIED_STATUS = frozenset({500, 502, 503, 504})
ROUTING_KEY = "x-smg-routing-key"
PATH = "/generate"
EXTRAS = ("routed_experts", "indexer_topk")
"""Of `meta_info`, where SGLang was started with `enable_return_<name>`: for every token that it computed
with and every layer, int32 numbers in base64."""


class EngineClient:
    """One connection pool to the router or to one engine. Use as an async context manager."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str],
        vocab_size: int,
        max_context_tokens: int,
        request_timeout_s: float,
        extras: Sequence[str] = (),
    ) -> None:
        """`extras`: of EXTRAS, what the engine is asked for besides; it must have been started so."""
        self._extras = {name: f"return_{name}" for name in extras}
        self._vocab_size, self._max_context_tokens = vocab_size, max_context_tokens
        self._request_timeout_s = request_timeout_s
        self._pool = HttpPool(base_url)
        self._headers = _header_lines(headers)

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._pool.close()

    async def generate(
        self,
        input_ids: Int32Array,
        *,
        sampling: Mapping[str, Any],
        routing_key: str = "",
        request_id: str = "",
    ) -> Turn:
        """One model call. `input_ids`: [P]; `sampling` by SGLang's names.

        ValueError where the request itself is wrong; InfraFault where the engine failed, timed out,
        was paused away (`abort`), or answered nonsense. A call that failed on the way is made again
        until then: only the answer that arrives counts.
        """
        self._check_request(input_ids, sampling)
        body: dict[str, Any] = {
            "input_ids": input_ids,
            "sampling_params": dict(sampling),
            "return_logprob": True,
        }
        body |= dict.fromkeys(self._extras.values(), True)
        if request_id:
            body["rid"] = request_id
        headers = header_lines({ROUTING_KEY: routing_key}) if routing_key else b""
        started = time.time()
        answer = await self._post(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers)
        try:
            return self._turn(answer, input_ids, started)
        except (KeyError, TypeError, ValueError) as error:
            raise InfraFault(f"the engine's answer is not understood: {error!r}") from error

    def _check_request(self, input_ids: Int32Array, sampling: Mapping[str, Any]) -> None:
        if not len(input_ids):
            raise ValueError("a request needs at least one token")
        lowest, highest = int(input_ids.min()), int(input_ids.max())
        if lowest < 0 or highest >= self._vocab_size:
            bad = lowest if lowest < 0 else highest
            raise ValueError(f"token id {bad} is outside the vocabulary of {self._vocab_size}")
        room = self._max_context_tokens - len(input_ids)
        wanted = int(sampling.get("max_new_tokens", 1))
        if wanted < 1 or wanted > room:
            raise ValueError(
                f"max_new_tokens={wanted}: {len(input_ids)} prompt tokens leave {room} of "
                f"{self._max_context_tokens}"
            )
        temperature = float(sampling.get("temperature", 1.0))
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature={temperature} is not a number from 0 on")

    def move(self, base_url: str, headers: Mapping[str, str]) -> None:
        """Later calls, and later tries of calls under way, go there."""
        self._pool.close()
        self._pool, self._headers = HttpPool(base_url), _header_lines(headers)

    async def _post(self, body: bytes, headers: bytes) -> dict[str, Any]:
        """Tries again while nobody answers or the answer is 5xx (an engine is being started again),
        within the time of one request."""
        deadline = time.monotonic() + self._request_timeout_s
        backoff_s = FIRST_BACKOFF_S
        while True:
            failure = await self._try_post(body, headers)
            if isinstance(failure, dict):
                return failure
            if time.monotonic() + backoff_s > deadline:
                raise InfraFault(failure)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    async def _try_post(self, body: bytes, headers: bytes) -> dict[str, Any] | str:
        """The answer, or why there is none yet. InfraFault where trying again is no use."""
        try:
            status, payload = await self._pool.post(
                PATH, self._headers + headers, body, timeout_s=self._request_timeout_s
            )
        except TimeoutError as error:
            raise InfraFault("the engine did not answer within request_timeout_s") from error
        except OSError as error:
            return f"the engine can't be reached: {error!r}"
        if status == 200:
            try:
                parsed: dict[str, Any] = orjson.loads(payload)
            except orjson.JSONDecodeError as error:
                raise InfraFault(f"the engine's answer is not JSON: {payload[:100]!r}") from error
            return parsed
        answer = f"the engine answered {status}: {payload.decode(errors='replace')[:300]}"
        if status not in RETRIED_STATUS:
            raise InfraFault(answer)
        return answer

    def _turn(self, answer: Mapping[str, Any], input_ids: Int32Array, started_s: float) -> Turn:
        meta = answer["meta_info"]
        reason = str(meta["finish_reason"]["type"])
        if reason == "abort":
            raise InfraFault(
                f"the engine aborted the call: {meta['finish_reason'].get('message', '')}"
            )
        output_ids = tuple(answer["output_ids"])
        logprobs, chosen, _ = (
            zip(*meta["output_token_logprobs"], strict=True) if output_ids else ((), (), ())
        )
        if chosen != output_ids:
            raise InfraFault("the engine's logprobs belong to other tokens than its output")
        # A sum of logprobs is finite if and only if all of them are.
        if None in logprobs or not math.isfinite(sum(logprobs)):
            raise InfraFault(
                "the engine answered logprobs that are not numbers: its weights are broken"
            )
        if output_ids and max(logprobs) > 0.0:  # by round-off
            logprobs = tuple(min(p, 0.0) for p in logprobs)
        return Turn(
            prompt_ids=input_ids,
            output_ids=output_ids,
            logprobs=logprobs,
            versions=_versions(meta, len(output_ids)),
            finish_reason=reason,
            started_s=started_s,
            ended_s=time.time(),
            extras={name: str(meta[name]) for name in self._extras},
        )


def _header_lines(headers: Mapping[str, str]) -> bytes:
    return header_lines({**headers, "Content-Type": "application/json"})


def _versions(meta: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """[count] the version of every output token; spans {version, start, end} cover them all."""
    versions: list[int] = []
    for span in meta["weight_versions"]:
        versions += [int(span["version"])] * (span["end"] - span["start"])
    if len(versions) != count:
        raise InfraFault(f"weight versions for {len(versions)} of {count} tokens")
    return tuple(versions)
