"""An SGLang plugin: a cached prefix serves only requests that begin under the weights that computed it.

After an update SGLang 0.5.20 flushes its prefix cache, and asserts that it could. It can't with requests in
flight, as with `rollout.partial`, nor, now and then, where its scheduler still holds a request whose answer
has just left: the server dies. Without a flush, later requests would go on from keys and values of weights
of any age. So the cache is split instead: every update begins a new name space, which a request enters when it
leaves the waiting queue. A request that was under way keeps what it has. What nobody finds any more is evicted
as its room is needed.

Counted are updates, not versions: the experts that a student is compared with are served under its version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MATCH = "sglang.srt.managers.schedule_batch.Req.init_next_round_input"
"""Where a request looks for its cached prefix; without a cache given, a running one goes on."""
FLUSH = (
    "sglang.srt.managers.scheduler_components.weight_updater."
    "SchedulerWeightUpdaterManager.flush_cache_after_weight_update"
)
"""After every update of weights, whatever its way."""
MARK = "weights="
SEPARATOR = "|"
_updates = 0


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(MATCH, around_prefix_match, HookType.AROUND)
    HookRegistry.register(FLUSH, instead_of_a_flush, HookType.REPLACE)


def instead_of_a_flush(updater: Any, request: Any) -> None:
    global _updates
    _updates += 1


def around_prefix_match(
    original: Callable[..., Any], request: Any, tree_cache: Any = None, **kwargs: Any
) -> Any:
    if tree_cache is not None:
        request.extra_key = name_space(request.extra_key, _updates)
    return original(request, tree_cache, **kwargs)


def name_space(extra_key: str | None, updates: int) -> str:
    """The caller's own name space (an adapter, a salt), within that of the weights."""
    own = extra_key or ""
    if own.startswith(MARK):
        own = own.partition(SEPARATOR)[2]
    return f"{MARK}{updates}{SEPARATOR}{own}"
