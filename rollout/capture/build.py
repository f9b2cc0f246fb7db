"""From the trie to traces: every leaf is one, and every sampled token trains in the first that holds it.

Order: the main thread, then each thread after its parent; within a thread by the time at which the
traces ended. So a turn that several traces share trains where it was first taken further, and a
thread's traces, joined by `continues`, give its actions in the order in which they were taken: a dead
end, then what went on without it; a context and its summary, then the context after the compaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from rlframe.types import NO_VERSION, Link, LinkKind, Trace
from rollout.capture.call import MAIN_THREAD, Thread
from rollout.capture.capture import Capture
from rollout.capture.trie import Node, path


@dataclass(frozen=True, slots=True)
class Where:
    """A position in a trace."""

    trace: int
    position: int


@dataclass(frozen=True, slots=True)
class Built:
    """The traces of an attempt."""

    traces: tuple[Trace, ...]
    links: tuple[Link, ...]
    last_action: dict[int, Where]
    """By call id: where its last sampled token stands; calls that are in no trace are missing."""
    first_action: dict[int, Where]

    def spans(self, calls: Collection[int]) -> list[tuple[int, int, int]]:
        """(trace, first token, token after the last) of what these calls sampled, where one trace has it."""
        found = []
        for call in sorted(calls):
            first, last = self.first_action.get(call), self.last_action.get(call)
            if first is not None and last is not None and first.trace == last.trace:
                found.append((first.trace, first.position, last.position + 1))
        return found


@dataclass(frozen=True, slots=True)
class _Leaf:
    thread: str
    last_call: int
    nodes: list[Node]


def build(capture: Capture) -> Built:
    """All traces in memory; `traces_of` gives one after the other."""
    order = [leaf for leaf in _ordered(capture) if _news(capture, leaf)]
    taken: dict[int, int] = {}
    traces: list[Trace] = []
    kept: list[_Leaf] = []
    for leaf in order:
        trace = _trace(capture, leaf, taken, index=len(traces))
        if trace is not None:
            traces.append(trace)
            kept.append(leaf)
    last = {call.id: _where(capture, taken, call.id, call.tokens - 1) for call in capture.calls}
    first = {call.id: _where(capture, taken, call.id, call.prompt_tokens) for call in capture.calls}
    found_last = {call: where for call, where in last.items() if where}
    found_first = {call: where for call, where in first.items() if where}
    links = _links(capture, kept, traces, found_last, found_first)
    return Built(tuple(traces), links, found_last, found_first)


def traces_of(capture: Capture) -> Iterator[Trace]:
    """The traces in order, each forgotten when the next is asked for: memory stays linear in the
    distinct tokens however often they are shared."""
    taken: dict[int, int] = {}
    index = 0
    for leaf in _ordered(capture):
        trace = _trace(capture, leaf, taken, index=index) if _news(capture, leaf) else None
        if trace is not None:
            index += 1
            yield trace


def _news(capture: Capture, leaf: _Leaf) -> bool:
    return any(_trained(capture, node) for node in leaf.nodes)


def _trained(capture: Capture, node: Node) -> list[tuple[int, int, int]]:
    """The node's runs of tokens that train."""
    return [run for run in node.owned if run[2] not in capture.left_out]


def _ordered(capture: Capture) -> list[_Leaf]:
    rank = {name: index for index, name in enumerate(thread_order(capture))}
    leaves = []
    for node in capture.trie.leaves():
        call = capture.calls[node.calls[0]]
        leaves.append((rank[call.thread], call.id, node))
    leaves.sort(key=lambda entry: entry[:2])
    return [_Leaf(capture.calls[call].thread, call, path(node)) for _, call, node in leaves]


def thread_order(capture: Capture) -> list[str]:
    """Parents before their children, otherwise by first call; a parent that nobody knows is none."""
    first: dict[str, int] = {}
    for call in capture.calls:
        first.setdefault(call.thread, call.id)
    known = sorted(first, key=lambda name: (name != MAIN_THREAD, first[name]))
    order: dict[str, None] = {}

    def add(name: str, waiting: frozenset[str]) -> None:
        parent = capture.threads[name].parent
        if parent in first and parent not in waiting:
            add(parent, waiting | {parent})
        order.setdefault(name)

    for name in known:
        add(name, frozenset({name}))
    return list(order)


def _trace(capture: Capture, leaf: _Leaf, taken: dict[int, int], *, index: int) -> Trace | None:
    """The leaf's path; what earlier traces train is context here. None where nothing is left."""
    length = leaf.nodes[-1].end
    mask = np.zeros(length, np.bool_)
    logprobs = np.zeros(length, np.float32)
    versions = np.full(length, NO_VERSION, np.int32)
    fresh = [node for node in leaf.nodes if id(node) not in taken]
    if not any(_trained(capture, node) for node in fresh):
        return None
    for node in fresh:
        taken[id(node)] = index
        for begin, end, owner in _trained(capture, node):
            call = capture.calls[owner]
            part = slice(begin - call.prompt_tokens, end - call.prompt_tokens)
            mask[begin:end] = True
            logprobs[begin:end] = call.logprobs[part]
            versions[begin:end] = call.versions[part]
    ids = np.concatenate([node.ids for node in leaf.nodes])
    return Trace(token_ids=ids, loss_mask=mask, rollout_logprobs=logprobs, versions=versions)


def _where(capture: Capture, taken: dict[int, int], call: int, position: int) -> Where | None:
    """In which trace the call's token at `position` trains or would train."""
    node = capture.place(call).node
    while node.parent is not None and position < node.start:
        node = node.parent
    trace = taken.get(id(node))
    return None if trace is None else Where(trace, position)


def _links(
    capture: Capture,
    leaves: list[_Leaf],
    traces: list[Trace],
    last: dict[int, Where],
    first: dict[int, Where],
) -> tuple[Link, ...]:
    links = []
    newest: dict[str, int] = {}
    for index, leaf in enumerate(leaves):
        if leaf.thread in newest:
            links.append(Link(LinkKind.CONTINUES, child=index, parent=newest[leaf.thread]))
        else:
            spawned = _spawned(capture, capture.threads[leaf.thread], index, traces, last, first)
            if spawned is not None:
                links.append(spawned)
        newest[leaf.thread] = index
    return tuple(links)


def _spawned(
    capture: Capture,
    thread: Thread,
    index: int,
    traces: list[Trace],
    last: dict[int, Where],
    first: dict[int, Where],
) -> Link | None:
    spawner = thread.spawned_by
    if spawner is None:
        spawner = _last_before(capture, thread)
    at = last.get(spawner) if spawner is not None else None
    if at is None or at.trace >= index:
        return None
    join = first.get(thread.joined_by) if thread.joined_by is not None else None
    position = None
    if join is not None:
        # The parent's context was compacted meanwhile: the chain goes on after this trace.
        position = join.position if join.trace == at.trace else len(traces[at.trace])
        position = position if position > at.position else None
    return Link(LinkKind.SPAWNED_BY, index, at.trace, at.position, position)


def _last_before(capture: Capture, thread: Thread) -> int | None:
    """The parent's last call before the thread's first one."""
    found = None
    for call in capture.calls:
        if call.thread == thread.name:
            return found
        if call.thread == thread.parent:
            found = call.id
    return None
