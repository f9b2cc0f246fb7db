"""An SGLang plugin: a cached prefix serves only requests that begin under the weights that computed it.

SGLang 0.5.20 can't be asked to flush its prefix cache with an update: with requests in flight, as with
`rollout.partial`, that kills the server, and without, where its scheduler still holds one whose answer has
just left. Left as it is, later requests would go on from keys and values of weights of any age. So the cache is split by version: a request takes its name
space when it leaves the waiting queue, by the version that will compute it. A request that was under
way keeps what it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TARGET = "sglang.srt.managers.schedule_batch.Req.init_next_round_input"
"""Where a request looks for its cached prefix; without a cache given, a running one goes on."""
MARK = "weights="
SEPARATOR = "|"


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, around_prefix_match, HookType.AROUND)


def around_prefix_match(
    original: Callable[..., Any], request: Any, tree_cache: Any = None, **kwargs: Any
) -> Any:
    if tree_cache is not None:
        from sglang.srt.runtime_context import get_serving

        request.extra_key = name_space(request.extra_key, get_serving().weight_version)
    return original(request, tree_cache, **kwargs)


def name_space(extra_key: str | None, version: str) -> str:
    """The caller's own name space (an adapter, a salt), within that of the version."""
    own = extra_key or ""
    if own.startswith(MARK):
        own = own.partition(SEPARATOR)[2]
    return f"{MARK}{version}{SEPARATOR}{own}"
